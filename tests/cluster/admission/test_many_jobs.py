"""Queue, preemption and replacement under the real operator, API server, scheduler and garbage collector."""

from __future__ import annotations

from typing import Any

import pytest

from support.api_server.apiclient import Client
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import condition, is_placed, job, pods
from support.local.processes import Process, wait_until

# One worker for all: they share an operator, or fight over its processor time.
pytestmark = pytest.mark.xdist_group("many-jobs")

RACK = "topology.kubernetes.io/rack"


@pytest.fixture
def racks(api_server: ApiServer, kwok: Process, namespace: str):
    """Makes nodes of one GPU in racks of the test's own; they go with the test."""
    made: list[str] = []

    def make(**sizes: int) -> list[str]:
        names = [f"{rack}{index}-{namespace[-6:]}" for rack, size in sizes.items() for index in range(size)]
        add_nodes(api_server, [node(name, gpus=1, labels={RACK: name[0], "test": namespace}) for name in names])
        made.extend(names)
        return names

    yield make
    api_server.kubectl("delete", "node", "--ignore-not-found", *made)


@pytest.fixture
def classes(api_server: ApiServer, namespace: str):
    """Two PriorityClasses of the test's own, low and high."""
    names = {level: f"{level}-{namespace[-6:]}" for level in ("low", "high")}
    for value, name in ((10, names["low"]), (1000, names["high"])):
        kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
        api_server.apply({**kind, "metadata": {"name": name}, "value": value})
    yield names
    api_server.kubectl("delete", "priorityclass", *names.values())


def here(namespace: str, name: str, *, stages: int, priority: str | None = None, **spec: Any) -> dict[str, Any]:
    """Return a job for the nodes of this test alone."""
    scheduling = {"scheduling": {"priorityClassName": priority}} if priority else {}
    template = {"spec": {"nodeSelector": {"test": namespace}}}
    return job(namespace, name, stages=stages, template=template, **scheduling, **spec)


def status(server: ApiServer, namespace: str, name: str) -> dict[str, Any]:
    return server.get("pipelinejob", "-n", namespace, name).get("status", {})


def runs(server: ApiServer, namespace: str, name: str, *, stages: int) -> bool:
    return is_placed(server, namespace, name, ranks=stages) and all(
        pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        for pod in pods(server, namespace, name)
    )


def reasons(server: ApiServer, namespace: str, name: str) -> set[str]:
    events = server.get("events", "-n", namespace)["items"]
    return {event["reason"] for event in events if event["involvedObject"]["name"] == name}


def test_a_job_of_higher_priority_takes_the_place_of_a_lower_one_which_comes_back(
    api_server, operator, namespace, racks, classes
):
    racks(a=2)
    api_server.apply(here(namespace, "low", stages=2, priority=classes["low"]))
    wait_until(lambda: runs(api_server, namespace, "low", stages=2), "the lower one runs")
    assert {pod["spec"]["priority"] for pod in pods(api_server, namespace, "low")} == {10}

    api_server.apply(here(namespace, "high", stages=2, priority=classes["high"]))

    wait_until(lambda: runs(api_server, namespace, "high", stages=2), "the higher one runs")
    made_way = f"made way for {namespace}/high; "
    wait_until(
        lambda: condition(api_server, namespace, "low", "Placed")["message"].startswith(made_way), "the lower waits"
    )
    assert condition(api_server, namespace, "low", "Placed")["reason"] == "Preempted"
    assert not pods(api_server, namespace, "low")

    api_server.kubectl("delete", "pipelinejob", "-n", namespace, "high")
    wait_until(lambda: runs(api_server, namespace, "low", stages=2), "the lower one is back")
    seen = status(api_server, namespace, "low")
    assert (seen["preemptions"], seen["restarts"], seen["disruptions"]) == (1, 0, 0)
    wait_until(lambda: "Preempted" in reasons(api_server, namespace, "low"), "it is told")


def test_a_class_that_comes_later_lets_the_job_start(api_server, operator, namespace, racks):
    racks(a=1)
    name = f"late-{namespace[-6:]}"
    api_server.apply(here(namespace, "gpt", stages=1, priority=name))
    wait_until(
        lambda: condition(api_server, namespace, "gpt", "Placed")["reason"] == "NoPriorityClass", "it is said to lack"
    )

    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    api_server.apply({**kind, "metadata": {"name": name}, "value": 5})
    wait_until(lambda: runs(api_server, namespace, "gpt", stages=1), "it runs")
    api_server.kubectl("delete", "priorityclass", name)


def test_a_younger_job_passes_an_older_one_beside_what_is_kept_for_it(api_server, operator, namespace, racks):
    racks(a=3)
    api_server.apply(here(namespace, "running", stages=2))
    wait_until(lambda: runs(api_server, namespace, "running", stages=2), "the first runs")
    api_server.apply(here(namespace, "older", stages=2))
    wait_until(
        lambda: status(api_server, namespace, "older").get("waitsFor") == [f"{namespace}/running"], "room is kept"
    )
    api_server.apply(here(namespace, "younger", stages=1))
    wait_until(lambda: runs(api_server, namespace, "younger", stages=1), "the younger passes")

    api_server.kubectl("delete", "pipelinejob", "-n", namespace, "running")
    wait_until(lambda: runs(api_server, namespace, "older", stages=2), "the older starts")
    assert runs(api_server, namespace, "younger", stages=1)


def test_lost_nodes_are_made_up_for_in_their_rack_and_healthy_stages_stay(api_server, operator, namespace, racks):
    racks(a=6, b=6)
    topology = {"topology": {"levels": [RACK]}}
    api_server.apply(here(namespace, "gpt", stages=4, **topology))
    wait_until(lambda: runs(api_server, namespace, "gpt", stages=4), "it runs")
    before = [stage["node"] for stage in status(api_server, namespace, "gpt")["stages"]]
    lost = before[1:3]

    gone = [pod["metadata"] for pod in pods(api_server, namespace, "gpt") if pod["spec"]["nodeName"] in lost]

    api_server.kubectl("delete", "node", *lost)
    for pod in gone:
        # Those of the next attempt, which have the same names, may be there by now.
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["uid"]}}
        Client(api_server).send("DELETE", f"api/v1/namespaces/{namespace}/pods/{pod['name']}", options)

    wait_until(
        lambda: runs(api_server, namespace, "gpt", stages=4) and status(api_server, namespace, "gpt")["attempt"] > 1,
        "the next attempt runs",
    )
    after = [stage["node"] for stage in status(api_server, namespace, "gpt")["stages"]]
    assert [after[0], after[3]] == [before[0], before[3]]
    assert not set(lost) & set(after)
    assert {name[0] for name in after} == {before[0][0]}
    assert status(api_server, namespace, "gpt")["disruptions"] == 1


def test_what_a_spec_leaves_open_is_chosen_by_the_operator(api_server, operator, namespace, racks):
    racks(a=2)
    model = {"gpt": {"numLayers": 22, "hiddenSize": 1024, "numHeads": 16}}
    open_spec = {"model": model, "parallelism": {"gpus": 2}, "schedule": {"globalBatchSize": 8}}
    api_server.apply(here(namespace, "gpt", stages=4, **open_spec))

    wait_until(lambda: is_placed(api_server, namespace, "gpt", ranks=2), "it runs")
    chosen = status(api_server, namespace, "gpt")["chosen"]
    assert chosen["pipeline"] * chosen["data"] == 2
