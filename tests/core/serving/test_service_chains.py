"""A job that serves in chains, over a fake cluster: grown, shrunk, exchanged, suspended, and what stands in its way."""

from typing import Any

import pytest

from pipelinejob.base import names
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.controller.chains.observing import GIVEN_UP_S
from pipelinejob_operator.validation.validate import defaulted
from support.clusters.operatorworld import World
from support.manifests.jobs import nodes, serving

BUDGET = ("PodDisruptionBudget", "default", "m-serve")


def service(replicas: int = 1, *, gpus: int = 12, **spec: Any) -> tuple[World, Key]:
    world = World(nodes(1, gpus=gpus))
    shape = {"pipeline": 3, "data": replicas}
    key = world.submit(defaulted(serving(parallelism=shape, **spec)))
    world.train()
    return world, key


def chains(world: World) -> list[str]:
    return sorted(job["metadata"]["name"] for job in world.cluster.jobs() if job["metadata"]["name"] != "m")


def fronts(world: World) -> list[str]:
    """Name the pods that the service leads to."""
    selector = world.cluster.objects["Service", "default", "m-serve"]["spec"]["selector"]
    return sorted(
        pod["metadata"]["name"]
        for pod in world.cluster.all_pods()
        if selector.items() <= pod["metadata"]["labels"].items()
    )


def scaled(world: World, key: Key, replicas: int) -> None:
    world.cluster.edit(key, parallelism={"pipeline": 3, "data": replicas})


def drained(world: World) -> None:
    """Let what was told to stop end, first stages before the others, and what follows come about."""
    for _ in range(3):
        world.settle()
        world.cluster.finish_deletions()
    world.train()


def test_each_replica_is_a_chain_of_its_own_behind_one_service() -> None:
    world, key = service(2)

    assert chains(world) == ["m-0", "m-1"]
    assert fronts(world) == ["m-0-r0-s0", "m-1-r0-s0"]
    status = world.status(key)
    assert (status["state"], status["replicas"], status["stagesReady"]) == ("Serving", 2, "6/6")
    assert status["selector"] == f"{names.LABEL_SERVICE}=m,{names.LABEL_STAGE}=0"
    assert world.condition(key, "Ready")["message"] == "2 of 2 chains answer"
    assert not status.get("stages")  # it holds no node itself
    spec = world.cluster.objects[BUDGET]["spec"]
    assert spec["minAvailable"] == 5
    labels = spec["selector"]["matchLabels"].items()
    pods = [pod for pod in world.cluster.all_pods() if labels <= pod["metadata"]["labels"].items()]
    assert len(pods) == 6
    chain = world.cluster.job(Key("default", "m-1"))
    assert chain["spec"]["serving"]["modelName"] == "m"
    assert chain["spec"]["parallelism"]["data"] == 1


def test_growing_touches_no_other_chain_and_shrinking_drains_one_from_its_first_stage() -> None:
    world, key = service(1)
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()}

    scaled(world, key, 2)
    world.train()

    after = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()}
    assert before.items() <= after.items()
    assert len(after) == 6
    assert world.condition(key, "Resized")["status"] == "True"
    assert world.cluster.objects[BUDGET]["spec"]["minAvailable"] == 5

    scaled(world, key, 1)
    world.settle()
    going = [pod["metadata"]["name"] for pod in world.cluster.all_pods() if "deletionTimestamp" in pod["metadata"]]
    assert going == ["m-1-r0-s0"]
    assert world.condition(key, "Resized")["reason"] == "Shrinking"
    assert world.cluster.objects[BUDGET]["spec"]["minAvailable"] == 2

    drained(world)
    assert chains(world) == ["m-0"]
    assert {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()} == before
    assert world.condition(key, "Resized")["status"] == "True"


def test_a_chain_without_room_holds_nothing_and_the_job_says_why() -> None:
    world = World(nodes(1, gpus=12, pods="5"))
    key = world.submit(defaulted(serving(parallelism={"pipeline": 3, "data": 2})))
    world.train()

    assert len(world.cluster.all_pods()) == 3
    assert world.status(key)["state"] == "Degraded"
    assert world.condition(key, "Placed")["status"] == "False"
    assert "chain m-1" in world.condition(key, "Placed")["message"]


def test_another_folder_is_taken_up_by_a_new_chain_before_the_old_one_drains() -> None:
    world, key = service(1)
    world.cluster.edit(key, model={"huggingFace": {"path": "/models/next"}, "numLayers": 6})

    world.settle()
    assert chains(world) == ["m-0", "m-1"]
    assert not [pod for pod in world.cluster.all_pods() if "deletionTimestamp" in pod["metadata"]]
    assert world.condition(key, "Resized")["reason"] == "RollingUpdate"

    world.train()  # the new one is ready
    going = [pod["metadata"]["name"] for pod in world.cluster.all_pods() if "deletionTimestamp" in pod["metadata"]]
    assert going == ["m-0-r0-s0"]

    drained(world)
    assert chains(world) == ["m-1"]
    assert world.cluster.job(Key("default", "m-1"))["spec"]["model"]["huggingFace"]["path"] == "/models/next"
    assert world.status(key)["state"] == "Serving"
    assert world.condition(key, "Resized")["status"] == "True"


def test_where_there_is_room_for_no_more_the_old_chain_drains_first() -> None:
    rolling = {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    world, key = service(1, gpus=3, serving=rolling)
    world.cluster.edit(key, template={"metadata": {"annotations": {"note": "next"}}})

    drained(world)

    assert chains(world) == ["m-1"]
    assert world.status(key)["state"] == "Serving"


def test_a_chain_that_fails_for_ever_stops_the_exchange_and_a_mended_spec_goes_on() -> None:
    world, key = service(1)
    world.cluster.edit(key, model={"huggingFace": {"path": "/models/bad"}, "numLayers": 6})
    world.settle()
    world.cluster.bind()
    world.cluster.set_pod(world.cluster.pod("m-1-r0-s1"), phase="Failed", code=64, message="no such folder")
    world.train()

    assert chains(world) == ["m-0", "m-1"]
    assert world.status(key)["state"] == "Degraded"
    said = world.condition(key, "Degraded")
    assert said["reason"] == "ChainFailed"
    assert "m-1" in said["message"]
    assert "no such folder" in said["message"]

    world.cluster.edit(key, model={"huggingFace": {"path": "/models/good"}, "numLayers": 6})
    for _ in range(3):
        drained(world)
    assert len(chains(world)) == 1
    assert world.status(key)["state"] == "Serving"


def test_a_job_of_which_every_chain_fails_has_failed() -> None:
    world = World(nodes(1, gpus=3))
    key = world.submit(defaulted(serving()))
    world.settle()
    world.cluster.bind()
    world.cluster.set_pod(world.cluster.pod("m-0-r0-s1"), phase="Failed", code=64, message="no such folder")
    world.settle()

    assert world.status(key)["state"] == "Failed"
    assert "no such folder" in world.condition(key, "Succeeded")["message"]
    assert [pod["metadata"]["name"] for pod in world.cluster.all_pods()] == ["m-0-r0-s1"]  # it keeps its logs


def test_a_suspended_job_has_no_chain_and_comes_back() -> None:
    world, key = service(2)
    world.cluster.edit(key, suspend=True)
    drained(world)

    assert chains(world) == []
    assert world.status(key)["state"] == "Suspended"
    assert not world.cluster.all_pods()

    world.cluster.edit(key, suspend=False)
    world.train()
    assert world.status(key)["state"] == "Serving"
    assert world.status(key)["replicas"] == 2


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget"])
def test_a_name_that_another_has_is_told_and_nothing_of_it_is_touched(kind: str) -> None:
    world = World(nodes(1, gpus=3))
    theirs = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "m-serve", "namespace": "default"}, "spec": {}}
    world.cluster._put(theirs)
    key = world.submit(defaulted(serving()))
    world.settle()

    stalled = world.condition(key, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "NamesTaken")
    assert world.cluster.objects[kind, "default", "m-serve"]["spec"] == {}


def test_a_chain_that_was_not_ready_for_long_does_not_keep_its_place() -> None:
    world = World(nodes(1, gpus=3))
    key = world.submit(defaulted(serving(serving={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})))
    world.settle()
    world.cluster.edit(key, model={"huggingFace": {"path": "/models/good"}, "numLayers": 6})
    world.cluster.pass_time(GIVEN_UP_S + 1)
    drained(world)

    assert chains(world) == ["m-1"]
