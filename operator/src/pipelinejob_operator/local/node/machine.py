"""This machine, as the local cluster's only node: its name, processors, memory, GPUs and environment."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.spec.job import Device, PipelineJobSpec

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

    def check_devices(self, spec: PipelineJobSpec) -> None:
        """See that a job's devices are of a kind that this machine has, before anything is measured or chosen.

        Raises NoPlacementError.
        """
        if spec.device is Device.GPU and not (self.gpus and spec.gpu_resource == _GPU):
            raise NoPlacementError(
                f"spec.device: gpu, and this machine has no {spec.gpu_resource}; add `device: cpu`, or plan for a"
                " cluster's with `pipelinejob plan --product`"
            )

    def threads(self, num_ranks: int) -> int:
        """Return the processor threads that each of so many ranks gets."""
        return max(1, self.cores // max(1, num_ranks))

    def concurrency(self, spec: PipelineJobSpec) -> int | None:
        """Return how many of a job's ranks compute at once on these processors; None on GPUs, one for each rank."""
        if spec.device is Device.GPU:
            return None
        return self.cores // self.threads((spec.parallelism.pipeline or 1) * (spec.parallelism.data or 1))

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
