"""What kubelets write of stages, over the real API server and scheduler: ends, refusals, mounts that fail.

The tests write what a kubelet would; kwok only takes deleted pods away, for the pods carry its
HOLD.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import HOLD, add_nodes, node
from support.api_server.operatorprocess import condition, is_placed, job, pods
from support.local.processes import Process, wait_until

# With the tests of a job's life: one operator serves both.
pytestmark = pytest.mark.xdist_group("life")

PODS = ("gpt-r0-s0", "gpt-r0-s1")
LOG_SHIPPER = {
    "name": "log-shipper",
    "image": "fluent-bit:3",
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


@pytest.fixture
def two_nodes(api_server: ApiServer, kwok: Process, namespace: str):
    """Two nodes of two GPUs, for pods that select them; one would do."""
    names = [f"stages-{namespace[-6:]}-{n}" for n in range(2)]
    add_nodes(api_server, [node(name, gpus=2, labels={"test": namespace[-6:]}) for name in names])
    yield names
    api_server.kubectl("delete", "node", "--ignore-not-found", *names)


def submit(server: ApiServer, namespace: str, *, containers=(), failure_policy=None, **pod: Any) -> None:
    template = {
        "metadata": {"annotations": {HOLD: "true"}},
        "spec": {
            "nodeSelector": {"test": namespace[-6:]},
            "containers": [{"name": "trainer"}, *containers],
            **pod,
        },
    }
    policy = {"failurePolicy": failure_policy} if failure_policy else {}
    server.apply(job(namespace, "gpt", stages=2, template=template, **policy))
    wait_for_pods(server, namespace)


def wait_for_pods(server: ApiServer, namespace: str, *, attempt: int = 1) -> None:
    """Wait until the attempt's pods have their nodes."""

    def is_there() -> bool:
        attempts = {pod["metadata"]["labels"]["pipelinejob.io/attempt"]: None for pod in pods(server, namespace, "gpt")}
        return is_placed(server, namespace, "gpt", ranks=2) and set(attempts) == {str(attempt)}

    wait_until(is_there, f"attempt {attempt} has its nodes")


def write_status(server: ApiServer, namespace: str, pod: str, **status: Any) -> None:
    """Write what a kubelet would."""
    patch = json.dumps({"status": status})
    server.kubectl("patch", "pod", "-n", namespace, pod, "--subresource=status", "--type=merge", "-p", patch)


def write_containers(server: ApiServer, namespace: str, pod: str, *, phase: str = "Running", **states: Any) -> None:
    statuses = [
        {
            "name": name.replace("_", "-"),
            "image": "x",
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        for name, state in states.items()
    ]
    is_ready = all("running" in state for state in states.values())
    conditions = [{"type": "Ready", "status": str(is_ready), "reason": "ContainersNotReady"}]
    write_status(server, namespace, pod, phase=phase, conditions=conditions, containerStatuses=statuses)


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": now()}}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def say(server: ApiServer, namespace: str, pod: str, reason: str, message: str) -> None:
    """Write an event as a kubelet does, by the older of the two APIs."""
    uid = server.get("pod", "-n", namespace, pod)["metadata"]["uid"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{pod}.", "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "source": {"component": "kubelet"},
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "count": 1,
    }
    server.kubectl("create", "-f", "-", stdin=json.dumps(event))


def status(server: ApiServer, namespace: str) -> dict[str, Any]:
    return server.get("pipelinejob", "-n", namespace, "gpt").get("status", {})


def test_trainers_that_completed_beside_living_containers_end_the_job_and_their_pods_go(
    api_server, operator, namespace, two_nodes
):
    submit(api_server, namespace, containers=[LOG_SHIPPER])
    for pod in PODS:
        write_containers(api_server, namespace, pod, log_shipper=RUNNING, trainer=RUNNING)
    wait_until(lambda: status(api_server, namespace)["state"] == "Training", "it trains")

    for pod in PODS:
        write_containers(api_server, namespace, pod, log_shipper=RUNNING, trainer=ended(0, "Completed"))

    wait_until(lambda: status(api_server, namespace)["state"] == "Succeeded", "it has succeeded")
    wait_until(lambda: not pods(api_server, namespace, "gpt"), "no pod holds a GPU")


def test_a_trainer_out_of_memory_beside_a_living_container_restarts_the_gang(
    api_server, operator, namespace, two_nodes
):
    submit(api_server, namespace, containers=[LOG_SHIPPER])
    write_containers(api_server, namespace, PODS[1], trainer=ended(137, "OOMKilled"), log_shipper=RUNNING)

    wait_for_pods(api_server, namespace, attempt=2)

    assert status(api_server, namespace)["restarts"] == 1


def test_a_container_that_crashes_beside_trainers_is_told_and_stops_nobody(api_server, operator, namespace, two_nodes):
    submit(api_server, namespace, containers=[LOG_SHIPPER])
    write_containers(api_server, namespace, PODS[0], trainer=RUNNING, log_shipper=RUNNING)

    write_containers(api_server, namespace, PODS[1], trainer=RUNNING, log_shipper=ended(2))

    wait_until(lambda: status(api_server, namespace)["state"] == "Training", "it trains")
    assert condition(api_server, namespace, "gpt", "Ready")["message"] == (
        "all 2 stages are up; beside the trainer of pod gpt-r0-s1, container log-shipper ended with exit code 2 (Error)"
    )


def test_pods_that_a_kubelet_refuses_go_to_another_node_and_count_as_no_failure(
    api_server, operator, namespace, two_nodes
):
    rules = [{"action": "Fail", "onExitCodes": [1]}]
    submit(api_server, namespace, failure_policy={"maxRestarts": 0, "rules": rules})
    words = "Pod was rejected: Allocate failed due to no healthy devices present, which is unexpected"
    refused = api_server.get("pod", "-n", namespace, PODS[1])["spec"]["nodeName"]

    write_status(
        api_server,
        namespace,
        PODS[1],
        phase="Failed",
        reason="UnexpectedAdmissionError",
        message=words,
        containerStatuses=None,
    )

    wait_for_pods(api_server, namespace, attempt=2)
    found = status(api_server, namespace)
    assert (found["restarts"], found["disruptions"]) == (0, 1)
    assert [(each["node"], words in each["message"]) for each in found["refusedNodes"]] == [(refused, True)]
    assert {stage["node"] for stage in found["stages"]} == set(two_nodes) - {refused}


def test_a_mount_that_fails_is_told_in_the_kubelets_words_and_follows_the_failure_policy(
    api_server, operator, namespace, two_nodes
):
    words = 'MountVolume.SetUp failed for volume "data" : secret "typo" not found'
    submit(
        api_server,
        namespace,
        volumes=[{"name": "data", "secret": {"secretName": "typo"}}],
        failure_policy={"maxRestarts": 0, "startTimeoutSeconds": 20},
    )
    creating = {"waiting": {"reason": "ContainerCreating"}}
    for pod in PODS:
        write_containers(api_server, namespace, pod, phase="Pending", trainer=creating)

    say(api_server, namespace, PODS[1], "FailedMount", words)

    wait_until(lambda: words in condition(api_server, namespace, "gpt", "Ready")["message"], "it says why")
    stalled = condition(api_server, namespace, "gpt", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "FailedMount")
    wait_until(lambda: status(api_server, namespace)["state"] == "Failed", "it gives up")
    succeeded = condition(api_server, namespace, "gpt", "Succeeded")
    assert succeeded["reason"] == "RestartsExhausted"
    assert f"did not start within 20 s: FailedMount: {words}" in succeeded["message"]
    wait_until(lambda: not pods(api_server, namespace, "gpt"), "no pod holds a GPU")
