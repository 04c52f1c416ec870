"""Late binding over the real kube-scheduler: it scatters the pods, and the stages are numbered along them."""

from __future__ import annotations

import signal

import pytest

from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, finish_pod, node
from support.api_server.operatorprocess import OperatorProcess, condition, job, pods
from support.local.processes import Process, wait_until

# With the tests of a job's life: one operator serves both.
pytestmark = pytest.mark.xdist_group("life")

RANK = "pipelinejob.io/rank"
LEAVES = 4  # of as many nodes
STAGES = 8


@pytest.fixture(scope="module")
def operator(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("operator")
    with OperatorProcess(api_server.kubeconfig, folder, "--gang-timeout-seconds=15") as operator:
        yield operator
        assert operator.alive


@pytest.fixture
def fabric(api_server: ApiServer, kwok: Process, namespace: str):
    """Nodes of a GPU each in racks, for pods that select them."""
    names = {f"late-{namespace[-6:]}-{rack}-{n}": f"rack-{rack}" for rack in range(LEAVES) for n in range(LEAVES)}
    labels = {"fabric": namespace[-6:]}
    rack = "topology.kubernetes.io/rack"
    add_nodes(api_server, [node(name, gpus=1, labels={**labels, rack: leaf}) for name, leaf in names.items()])
    yield names
    api_server.kubectl("delete", "node", "--ignore-not-found", *names)


def late(namespace: str, name: str = "gpt", *, stages: int = STAGES, **template):
    """Return a late-bound job whose pods go to this test's nodes."""
    pod_spec = {"nodeSelector": {"fabric": namespace[-6:]}, **template}
    return job(namespace, name, stages=stages, scheduling={"binding": "Late"}, template={"spec": pod_spec})


def status(server: ApiServer, namespace: str):
    return server.get("pipelinejob", "-n", namespace, "gpt").get("status", {})


def trains(server: ApiServer, namespace: str) -> bool:
    return status(server, namespace).get("state") == "Training"


def test_crossings_are_no_more_than_the_racks_that_the_scheduler_used_less_one(api_server, operator, namespace, fabric):
    api_server.apply(late(namespace))

    wait_until(lambda: trains(api_server, namespace), "it trains")

    found = pods(api_server, namespace, "gpt")
    racks = {fabric[pod["spec"]["nodeName"]] for pod in found}
    assert len(racks) > 1, "the scheduler spreads pods, so there is something to number along"
    assert status(api_server, namespace)["crossings"]["rack"] == len(racks) - 1
    stages = status(api_server, namespace)["stages"]
    told = {each["pod"]: f"{each['replica']}/{each['stage']}" for each in stages}
    assert {pod["metadata"]["name"]: pod["metadata"]["annotations"][RANK] for pod in found} == told
    assert {pod["metadata"]["labels"]["pipelinejob.io/stage"] for pod in found} == {str(n) for n in range(STAGES)}


def test_no_pod_had_a_gate_or_a_place_of_ours(api_server, operator, namespace, fabric):
    api_server.apply(late(namespace))
    wait_until(lambda: trains(api_server, namespace), "it trains")

    for pod in pods(api_server, namespace, "gpt"):
        assert "affinity" not in pod["spec"]
        assert pod["metadata"]["name"].startswith("gpt-p")


def test_a_numbered_gang_ends_well_and_restarts_when_a_stage_fails(api_server, operator, namespace, fabric):
    api_server.apply(late(namespace, stages=2))
    wait_until(lambda: trains(api_server, namespace), "it trains")
    finish_pod(api_server, namespace, status(api_server, namespace)["stages"][1]["pod"], exit_code=1)

    wait_until(
        lambda: status(api_server, namespace)["attempt"] == 2 and trains(api_server, namespace),
        "the next attempt trains",
    )
    assert status(api_server, namespace)["restarts"] == 1

    for pod in pods(api_server, namespace, "gpt"):
        finish_pod(api_server, namespace, pod["metadata"]["name"], exit_code=0)
    wait_until(lambda: condition(api_server, namespace, "gpt", "Succeeded")["status"] == "True", "it succeeds")


def test_a_gang_that_is_only_partly_bound_gives_everything_back(api_server, operator, namespace, fabric):
    api_server.apply(late(namespace, stages=LEAVES * LEAVES + 1))

    wait_until(lambda: len(pods(api_server, namespace, "gpt")) == LEAVES * LEAVES + 1, "the pods are made")
    wait_until(
        lambda: condition(api_server, namespace, "gpt", "Placed")["reason"] == "GangTimeout",
        "it gives up",
    )

    assert "1 of 17 pods were not bound within 15 s" in condition(api_server, namespace, "gpt", "Placed")["message"]
    wait_until(lambda: not pods(api_server, namespace, "gpt"), "nothing is held")


def test_the_numbering_outlives_the_operator(api_server, operator, namespace, fabric):
    api_server.apply(late(namespace))
    wait_until(lambda: condition(api_server, namespace, "gpt", "Placed")["status"] == "True", "it is numbered")
    operator.process.stop(signal.SIGKILL)
    before = {each["stage"]: each["pod"] for each in status(api_server, namespace)["stages"]}

    operator.start()

    wait_until(lambda: trains(api_server, namespace), "it trains")
    assert {each["stage"]: each["pod"] for each in status(api_server, namespace)["stages"]} == before
    annotations = {
        pod["metadata"]["name"]: pod["metadata"].get("annotations", {}).get(RANK)
        for pod in pods(api_server, namespace, "gpt")
    }
    assert annotations == {pod: f"0/{stage}" for stage, pod in before.items()}
