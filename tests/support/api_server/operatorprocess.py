"""The real operator as a child process, and PipelineJobs to give it."""

from __future__ import annotations

import http.client
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Self

from support.api_server.apiserver import ApiServer
from support.local.processes import Process, free_ports, wait_until


class OperatorProcess:
    """`pipelinejob-operator` against a kubeconfig; use as a context manager, given back once its caches are filled."""

    def __init__(self, kubeconfig: object, folder: Path, *flags: str, name: str = "operator") -> None:
        (self.port,) = free_ports(1)
        self.command = [
            Path(sys.executable).with_name("pipelinejob-operator"),
            f"--kubeconfig={kubeconfig}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self.port}",
            f"--identity={name}",
            "--trainer-image=example.org/trainer:test",
            *flags,
        ]
        environment = {key: "" for key in os.environ if key.lower().endswith("_proxy")}
        self.process = Process(name, self.command, log=folder / f"{name}.log", environment=environment)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    @property
    def alive(self) -> bool:
        return self.process.alive

    def start(self) -> None:
        self.process.start()
        try:
            wait_until(lambda: self.get("/readyz") == "ok", "operator ready")
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self.process.tail()}") from error

    def stop(self) -> float:
        """End it as Kubernetes would, and give the seconds it took."""
        started = time.monotonic()
        self.process.stop()
        return time.monotonic() - started

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def metric(self, family: str, **labels: str) -> float | None:
        """Return the sum of the metric's series with these labels; None if there is none."""
        found = [
            float(value)
            for text, value in re.findall(rf"^{family}(\{{.*\}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
            if all(f'{key}="{wanted}"' in text for key, wanted in labels.items())
        ]
        return sum(found) if found else None


def job(namespace: str, name: str, *, stages: int, device: str = "gpu", **spec: Any) -> dict[str, Any]:
    """Return a PipelineJob of that many stages, a GPU each."""
    return {
        "apiVersion": "pipelinejob.io/v1alpha1",
        "kind": "PipelineJob",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "model": {"gpt": {"numLayers": max(stages, 2), "hiddenSize": 64, "numHeads": 4}},
            "data": {"corpus": "python-stdlib"},
            "parallelism": {"pipeline": stages},
            "schedule": {"microBatches": 2 * stages},
            "training": {"steps": 100},
            "device": device,
            **spec,
        },
    }


def pods(server: ApiServer, namespace: str, name: str) -> list[dict[str, Any]]:
    return server.get("pods", "-n", namespace, "-l", f"pipelinejob.io/name={name}")["items"]


def is_placed(server: ApiServer, namespace: str, name: str, *, ranks: int) -> bool:
    """Tell whether all ranks' pods are there, released and bound."""
    found = pods(server, namespace, name)
    return len(found) == ranks and all(
        pod["spec"].get("nodeName") and not pod["spec"].get("schedulingGates") for pod in found
    )


def condition(server: ApiServer, namespace: str, name: str, kind: str) -> dict[str, Any]:
    status = server.get("pipelinejob", "-n", namespace, name).get("status", {})
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    return conditions[kind]
