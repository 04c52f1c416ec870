"""Recovery in place on another node: where a lost stage goes, and what happens where no node has room."""

import pytest

from support.clusters.recoveringworld import (
    IN_PLACE,
    all_wait,
    changed,
    come_back,
    fail,
    lose_node,
    says,
    spread,
    stick,
    uids,
    where,
)
from support.manifests.jobs import nodes


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_stage_whose_node_is_lost_goes_to_another_and_the_others_keep_their_pods(is_gone):
    world, key = spread(4)
    before, nodes_before = uids(world), where(world)
    lose_node(world, nodes_before["s1"], is_gone=is_gone)
    world.cluster.answers.pop("gpt-r0-s1")
    for stage in (0, 2):
        says(world, stage, step=7, heard=1, lost=[1])
    come_back(world)
    all_wait(world, heard=1)
    world.settle()

    free = {"n0", "n1", "n2", "n3"} - set(nodes_before.values())
    assert changed(world, before) == {"s1"}
    assert {where(world)["s1"]} == free
    status = world.status(key)
    assert [stage["node"] for stage in status["stages"]] == [where(world)[f"s{stage}"] for stage in range(3)]
    assert (status["attempt"], status["restarts"], status["recovery"]["incarnation"]) == (1, 0, 2)
    said = next(event.message for event in world.cluster.events if event.reason == "Replacing")
    assert said == (
        f"Only gpt-r0-s1 is replaced (on {free.pop()} instead of {nodes_before['s1']}); 2 stages keep their processes"
    )


def test_a_replacement_whose_node_falls_silent_under_it_goes_to_another():
    world, key = spread(4)
    fail(world, 1, 137)
    come_back(world)
    world.settle()
    first = where(world)["s1"]
    lose_node(world, first, is_gone=False)
    come_back(world)
    all_wait(world, heard=1)
    world.settle()

    assert where(world)["s1"] != first
    assert (world.status(key)["attempt"], world.status(key)["recovery"]["replacements"]) == (1, 2)


def test_where_no_other_node_has_room_the_gang_restarts_and_says_so():
    world, key = spread(3)
    lose_node(world, where(world)["s1"], is_gone=True)
    world.settle()

    assert world.status(key)["attempt"] == 2
    told = [event.message for event in world.cluster.events if event.reason == "StageFailed"]
    assert "no node has room for gpt-r0-s1 now" in told[0]


def waiting_for_room():
    """Return a job whose lost stage waits for room, and the node that it was on."""
    recovery = IN_PLACE["recovery"] | {"noRoom": "Wait"}
    world, key = spread(3, recovery=recovery)
    before, lost = uids(world), where(world)["s1"]
    lose_node(world, lost, is_gone=True)
    world.cluster.answers.pop("gpt-r0-s1")
    for stage in (0, 2):
        says(world, stage, step=7, heard=1, lost=[1])
    world.settle()
    return world, key, before


def test_the_others_wait_for_room_where_the_job_says_so_and_go_on_with_what_they_hold():
    world, key, before = waiting_for_room()
    ready = world.condition(key, "Ready")
    assert (ready["reason"], world.status(key)["attempt"]) == ("AwaitsRoom", 1)
    assert "no node has room for gpt-r0-s1 now; the others wait with what they hold in memory until" in ready["message"]
    world.cluster.pass_time(60)
    world.settle()
    assert world.told().count("AwaitsRoom") == 1

    world.cluster._put(nodes(5)[-1])
    come_back(world)
    all_wait(world, heard=1)
    world.settle()

    assert changed(world, before) == {"s1"}
    status = world.status(key)
    assert (status["attempt"], status["restarts"], status["recovery"]["incarnation"]) == (1, 0, 2)


def test_where_no_room_comes_in_time_the_gang_restarts():
    world, key, _ = waiting_for_room()
    world.cluster.pass_time(121)
    world.settle()

    assert world.status(key)["attempt"] == 2
    told = [event.message for event in world.cluster.events if event.reason == "StageFailed"]
    assert "nor had any within 120 s, spec.recovery.waitSeconds" in told[-1]


def stuck_replacement(count, **recovery):
    """Return a job whose replacement has been stuck for a minute as its image cannot be pulled, and its node."""
    world, key = spread(count, recovery=IN_PLACE["recovery"] | {"waitSeconds": 600} | recovery)
    fail(world, 1, 137)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    world.cluster.bind()
    stick(world, 1, "ImagePullBackOff", "no such host")
    world.settle()
    assert world.condition(key, "Degraded")["reason"] == "ImagePullBackOff"
    node = where(world)["s1"]
    world.cluster.pass_time(61)
    world.settle()
    return world, key, node


def test_a_replacement_whose_image_cannot_be_pulled_goes_to_another_node_and_no_other_restarts():
    world, key, node = stuck_replacement(4)
    before = uids(world)
    come_back(world)
    all_wait(world, heard=1)
    world.settle()

    assert where(world)["s1"] != node
    assert changed(world, before) <= {"s1"}
    status = world.status(key)
    assert (status["attempt"], status["restarts"], status["recovery"]["replacements"]) == (1, 0, 2)
    told = [event.message for event in world.cluster.events if event.reason == "StageFailed"]
    assert any("it did not start within 61 s: ImagePullBackOff: no such host" in message for message in told)


def test_where_no_other_node_takes_it_the_replacement_has_its_start_timeout_and_then_all_restart():
    world, key, _ = stuck_replacement(3)
    assert (world.status(key)["attempt"], world.status(key)["recovery"]["replacements"]) == (1, 1)

    world.cluster.pass_time(240)
    world.settle()

    status = world.status(key)
    assert (status["attempt"], status["restarts"]) == (2, 1)


def test_two_that_lose_their_nodes_one_after_the_other_do_not_get_the_room_of_one():
    world, key = spread(5)
    for stage in (1, 2):
        lose_node(world, where(world)[f"s{stage}"], is_gone=True)
        world.cluster.answers.pop(f"gpt-r0-s{stage}")
        world.settle()  # the first is not bound yet
    world.cluster.bind()
    world.cluster.start()
    all_wait(world, heard=1)
    world.settle()

    assert len({*where(world).values()}) == 3
    assert (world.status(key)["attempt"], world.status(key)["recovery"]["incarnation"]) == (1, 2)


def test_a_node_that_refuses_the_replacement_is_left_out():
    world, key = spread(4)
    fail(world, 1, 137)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    world.cluster.bind()
    first = where(world)["s1"]
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", reason="UnexpectedAdmissionError")
    come_back(world)
    all_wait(world, heard=1)
    world.settle()

    assert where(world)["s1"] != first
    assert [each["node"] for each in world.status(key)["refusedNodes"]] == [first]
    assert world.status(key)["attempt"] == 1


def test_a_stage_on_a_silent_node_that_answers_is_not_lost_with_another():
    world, key = spread(4)
    before = uids(world)
    lose_node(world, where(world)["s2"], is_gone=False)
    fail(world, 1, 137)
    come_back(world)

    assert changed(world, before) == {"s1"}
    assert world.status(key)["recovery"]["replacements"] == 1
