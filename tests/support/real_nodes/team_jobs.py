"""Jobs of a team's namespace on real nodes: made from the example, watched, changed and killed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import nodes
from support.api_server.podhistory import Pod, held
from support.local.processes import wait_until

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "stdlib-gpt.yaml"
NAMESPACE = "team"
LABEL_JOB = "pipelinejob.io/name"


# Devices that a gang fills. Not nvidia.com/gpu, which no job may ask for that computes on
# processors as these do.
DEVICE = "example.com/accelerator"
GANGS = ("modest", "urgent")


# ---- what the tests are written with


def example(*, name: str = "stdlib-gpt", steps: int, interval: int) -> dict[str, Any]:
    """The example with fewer and smaller steps, checkpoints on the shared volume, and too hungry for one node alone."""
    manifest = copy.deepcopy(yaml.safe_load(EXAMPLE.read_text()))
    manifest["metadata"] = {"name": name, "namespace": NAMESPACE}
    spec = manifest["spec"]
    spec["training"] |= {"steps": steps, "warmupSteps": 5}
    spec["schedule"]["microBatchSize"] = 1
    spec["checkpoint"] = {"intervalSteps": interval, "volume": {"claimName": "checkpoints"}}
    spec["evaluation"] = {"intervalSteps": interval}
    # Two processors a node: three stages of 0.6 fit, four do not.
    resources = {"requests": {"cpu": "600m", "memory": "256Mi"}}
    spec["template"] = {"spec": {"containers": [{"name": "trainer", "resources": resources}]}}
    return manifest


def small(*, name: str, steps: int, interval: int) -> dict[str, Any]:
    """The example as two stages that find room beside the whole of it."""
    manifest = example(name=name, steps=steps, interval=interval)
    spec = manifest["spec"]
    spec["parallelism"] = {"pipeline": 2}
    spec["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "50m"
    return manifest


def serving(*, name: str, of: str) -> dict[str, Any]:
    """What a small job trained, served by as many stages from where its checkpoints lie."""
    manifest = small(name=name, steps=1, interval=1)
    spec = manifest["spec"]
    for field in ("data", "schedule", "training", "evaluation"):
        del spec[field]
    spec |= {"mode": "Serve", "serving": {"fromCheckpoint": True, "cacheTokens": 2048}}
    spec["checkpoint"] = {"volume": {"claimName": "checkpoints"}, "path": f"{NAMESPACE}/{of}"}
    return manifest


def on_devices(*, name: str, steps: int, priority: str) -> dict[str, Any]:
    """The example as two stages that hold a device each, with a priority."""
    manifest = example(name=name, steps=steps, interval=1000)
    spec = manifest["spec"]
    spec["parallelism"] = {"pipeline": 2}
    spec["scheduling"] = {"priorityClassName": priority}
    spec["template"]["spec"]["containers"][0]["resources"]["limits"] = {DEVICE: "1"}
    return manifest


def priority_class(name: str, value: int) -> dict[str, Any]:
    """A class as docs/scheduling.md advises: the operator makes room by whole gangs, kube-scheduler takes no pod."""
    meta = {"name": name, "annotations": {"pipelinejob.io/gang-preemption": "true"}}
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    return {**kind, "metadata": meta, "value": value, "preemptionPolicy": "Never"}


def gang(there: dict[str, Pod], name: str) -> list[Pod]:
    return [pod for pod in there.values() if pod["metadata"]["labels"].get(LABEL_JOB) == name]


def phases(there: dict[str, Pod]) -> Iterator[str]:
    return (pod["status"]["phase"] for name in GANGS for pod in gang(there, name))


def devices_held(there: dict[str, Pod]) -> tuple[int, ...]:
    return tuple(sum(held(pod, DEVICE) for pod in gang(there, name)) for name in GANGS)


def is_arriving(pods: list[Pod]) -> bool:
    return any(held(pod, DEVICE) and pod["status"]["phase"] == "Pending" for pod in pods)


def containers(cluster: nodes.Cluster, name: str) -> dict[str, tuple[str, str, int]]:
    """Return of each pod its uid, its trainer's container, and how often that was started again."""
    return {
        pod["metadata"]["name"]: (pod["metadata"]["uid"], each.get("containerID", ""), each["restartCount"])
        for pod in pods(cluster, name)
        for each in pod["status"]["containerStatuses"]
        if each["name"] == "trainer"
    }


def apply_job(cluster: nodes.Cluster, manifest: dict[str, Any]) -> None:
    cluster.server.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


def job(cluster: nodes.Cluster, name: str) -> Any:
    return cluster.server.get("pj", "-n", NAMESPACE, name)


def pods(cluster: nodes.Cluster, name: str) -> list[Any]:
    return list(cluster.server.get("pods", "-n", NAMESPACE, "-l", f"{LABEL_JOB}={name}")["items"])


def patch(cluster: nodes.Cluster, name: str, change: dict[str, Any]) -> None:
    cluster.server.kubectl("patch", "pj", "-n", NAMESPACE, name, "--type=merge", "-p", json.dumps(change))


def events(cluster: nodes.Cluster, name: str) -> list[str]:
    found = cluster.server.get("events", "-n", NAMESPACE, f"--field-selector=involvedObject.name={name}")["items"]
    return [f"{each['reason']}: {each.get('message', '')}" for each in found]


def wait_for(cluster: nodes.Cluster, name: str, claim: Any, what: str, *, timeout_s: float = 600) -> None:
    """Wait for a claim about the job's status; on failure say all that is known of the job."""

    def is_so() -> bool:
        status = job(cluster, name)["status"]
        if status.get("state") == "Failed":
            pytest.fail(f"{name} failed\n{_everything_about(cluster, name)}")
        return bool(claim(status))

    try:
        wait_until(is_so, f"{name}: {what}", timeout_s=timeout_s, poll_s=1)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{_everything_about(cluster, name)}") from error


def kill(cluster: nodes.Cluster, pod: str) -> None:
    """Kill a stage's process as the kernel would, out of memory: by SIGKILL, from outside its container."""
    found = cluster.server.get("pod", "-n", NAMESPACE, pod)
    container = found["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    node = next(node for node in cluster.nodes if node.name == found["spec"]["nodeName"])
    node.runtime.ctr("tasks", "kill", "--signal", "SIGKILL", container)


def _everything_about(cluster: nodes.Cluster, name: str) -> str:
    parts = [json.dumps(job(cluster, name).get("status"), indent=1), *events(cluster, name)]
    for pod in pods(cluster, name):
        parts.append(json.dumps(pod["status"], indent=1)[:2000])
        parts.append(_or_error(cluster, "logs", "-n", NAMESPACE, pod["metadata"]["name"], "--tail=30"))
    parts.append(_or_error(cluster, "logs", "-n", "pipelinejob-system", "deploy/pj-pipelinejob-operator", "--tail=40"))
    return "\n".join(parts)


def _or_error(cluster: nodes.Cluster, *arguments: str) -> str:
    try:
        return cluster.server.kubectl(*arguments)
    except RuntimeError as error:
        return str(error)
