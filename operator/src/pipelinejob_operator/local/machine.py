"""This machine, as the local cluster's only node: its name, processors, memory, GPUs and environment."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NVIDIA_SMI_TIMEOUT_S = 10
_MAX_PODS = 1024
_GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a machine can give to stages; `environment` is what their processes inherit."""

    hostname: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def node(self) -> dict[str, Any]:
        """Describe the machine as a Kubernetes node."""
        resources = {"cpu": str(self.cores), "memory": str(self.memory_bytes), "pods": str(_MAX_PODS)}
        if self.gpus:
            resources[_GPU] = str(len(self.gpus))
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.hostname,
                "uid": f"node-{self.hostname}",
                "labels": {"kubernetes.io/hostname": self.hostname},
            },
            "spec": {},
            "status": {
                "allocatable": resources,
                "capacity": resources,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }


def read_machine() -> Machine:
    """Look at the machine that this process runs on."""
    return Machine(
        hostname=_dns_label(socket.gethostname()),
        cores=_usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
        environment=dict(os.environ),
    )


def _dns_label(hostname: str) -> str:
    return re.sub(r"[^a-z0-9.-]", "-", hostname.lower()).strip("-.") or "localhost"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> tuple[str, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        listed = subprocess.run(
            [command, "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=True,
        ).stdout
    except (subprocess.SubprocessError, OSError):  # installed, but no driver or no GPU: a machine without GPUs
        return ()
    return tuple(line.strip() for line in listed.splitlines() if line.strip())
