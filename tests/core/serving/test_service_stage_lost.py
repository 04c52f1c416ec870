"""A pod of a chain that serves is evicted, deleted, or gone with its node: it alone is replaced."""

from typing import Any

import pytest

from pipelinejob.base import names
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.validation.validate import defaulted
from support.clusters.fakecluster import pinned_node
from support.clusters.operatorworld import World
from support.manifests.jobs import nodes, serving

TEN_PROCESSORS = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "10"}}}]}}  # of 16
CHAIN = Key("default", "m-0")
EVICTED = {"reason": "Evicted", "message": "The node was low on resource: memory."}


def served(num_nodes: int, **spec: Any) -> World:
    """Return a world of nodes that take a stage each, and one chain of three stages that answers."""
    world = World(nodes(num_nodes))
    world.submit(defaulted(serving(template=TEN_PROCESSORS, parallelism={"pipeline": 3, "data": 1}, **spec)))
    world.train()
    assert world.status(CHAIN)["state"] == "Serving"
    return world


def uids(world: World) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()}


def lose(world: World, name: str, how: str) -> None:
    pod = world.cluster.pod(name)
    if how == "evicted":
        world.cluster.set_pod(pod, phase="Failed", code=137, **EVICTED)
    elif how == "deleted":
        world.cluster.remove(pod)
    elif how == "deleted at once":
        world.cluster.remove(pod, at_once=True)
    else:
        world.cluster.objects.pop(("Node", "", pod["spec"]["nodeName"]))


def come_back(world: World) -> None:
    """Let deletions end, and replacements come up."""
    world.settle()
    world.cluster.finish_deletions()
    world.train()


@pytest.mark.parametrize("how", ["evicted", "deleted", "deleted at once", "node gone"])
@pytest.mark.parametrize("stage", [0, 1])
def test_only_the_pod_that_is_lost_is_replaced_and_the_others_keep_theirs(how: str, stage: int) -> None:
    world, lost = served(4), f"m-0-r0-s{stage}"
    before, node = uids(world), world.cluster.pod(lost)["spec"]["nodeName"]
    lose(world, lost, how)
    world.settle()
    assert world.condition(CHAIN, "Ready")["status"] == "False"
    assert f"only {lost} is replaced" in world.condition(CHAIN, "Ready")["message"]

    come_back(world)

    after = uids(world)
    assert {name for name in before if before[name] != after.get(name)} == {lost}
    assert (world.cluster.pod(lost)["spec"]["nodeName"] == node) is (how != "node gone")
    status = world.status(CHAIN)
    assert (status["state"], status["attempt"], status.get("restarts", 0)) == ("Serving", 1, 0)
    assert status["recovery"]["replacements"] == 1
    assert not status["recovery"].get("replacing")
    assert [event for event in world.told() if event in {"Replacing", "Recovered", "Restarting"}] == [
        "Replacing",
        "Recovered",
    ]
    assert world.status(Key("default", "m"))["state"] == "Serving"


def test_a_first_stage_that_is_deleted_keeps_its_grace_to_end_the_answers_in_work() -> None:
    world = served(4)
    lose(world, "m-0-r0-s0", "deleted")
    before = uids(world)
    world.settle()

    assert uids(world) == before
    assert "deletionTimestamp" in world.cluster.pod("m-0-r0-s0")["metadata"]


def test_a_replacement_that_is_lost_too_and_two_at_once_are_replaced() -> None:
    world = served(5)
    first = uids(world)["m-0-r0-s0"]
    for name in ("m-0-r0-s1", "m-0-r0-s2"):
        lose(world, name, "evicted")
    come_back(world)
    lose(world, "m-0-r0-s1", "node gone")
    come_back(world)

    status = world.status(CHAIN)
    assert (status["state"], status["attempt"], status["recovery"]["replacements"]) == ("Serving", 1, 3)
    assert uids(world)["m-0-r0-s0"] == first


def test_a_chain_for_whose_stage_no_node_has_room_lets_all_go_and_says_so() -> None:
    world = served(3)
    lose(world, "m-0-r0-s1", "node gone")
    come_back(world)

    assert world.status(CHAIN)["attempt"] == 2
    assert not [pod for pod in world.cluster.all_pods() if pinned_node(pod)]
    told = [event.message for event in world.cluster.events if event.reason == "StageFailed"]
    assert "no node has room for m-0-r0-s1 now" in told[0]


@pytest.mark.parametrize(("stage", "longest_s"), [(1, 120), (0, 120 + 60)])
def test_a_replacement_that_does_not_come_in_time_restarts_the_chain(stage: int, longest_s: int) -> None:
    world = served(4, recovery={"waitSeconds": 120}, serving={"timeoutSeconds": 60})
    lose(world, f"m-0-r0-s{stage}", "deleted at once")
    world.settle()
    world.cluster.pass_time(longest_s - 1)
    world.settle()
    assert world.status(CHAIN)["attempt"] == 1

    world.cluster.pass_time(2)
    world.settle()
    assert world.status(CHAIN)["attempt"] == 2
    told = [event.message for event in world.cluster.events if event.reason == "StageFailed"]
    assert "its replacement did not come within 120 s, spec.recovery.waitSeconds" in told[-1]


def test_late_bound_chains_are_behind_the_service_and_restart_as_a_whole() -> None:
    world = World(nodes(4))
    world.submit(defaulted(serving(scheduling={"binding": "Late"}, parallelism={"pipeline": 3, "data": 1})))
    world.settle()
    world.cluster.bind(p0="n1", p1="n2", p2="n0")
    world.train()

    selector = world.cluster.objects["Service", "default", "m-serve"]["spec"]["selector"].items()
    (front,) = (pod for pod in world.cluster.all_pods() if selector <= pod["metadata"]["labels"].items())
    assert front["metadata"]["annotations"][names.ANNOTATION_RANK] == "0/0"
    assert front["metadata"]["name"] == "m-0-p2"  # as it was bound
    assert front["spec"]["terminationGracePeriodSeconds"] == 600 + 5 + 25
    variables = {each["name"]: each.get("value") for each in front["spec"]["containers"][0]["env"]}
    assert variables[names.ENV_LEAVING_S] == "5"
    assert world.status(CHAIN)["state"] == "Serving"

    lose(world, "m-0-p0", "deleted at once")
    world.settle()
    assert world.status(CHAIN)["attempt"] == 2
