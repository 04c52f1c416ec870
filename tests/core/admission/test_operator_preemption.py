"""Who makes way for whom: a job of higher priority, and those that leave for it."""

import pytest

from pipelinejob_operator.cluster import Key
from support.clusters.operatorworld import World
from support.clusters.priorities import HIGH, LOW, classes, end, states, submit
from support.manifests.jobs import job, nodes, priority_class


def test_a_job_of_higher_priority_makes_a_lower_one_checkpoint_leave_and_come_back():
    world = World(nodes(2))
    classes(world)
    low = submit(world, "low", stages=2, priority=LOW)
    world.train()
    high = submit(world, "high", stages=2, priority=HIGH)

    assert world.condition(high, "Placed")["reason"] == "Preempting"
    assert world.condition(high, "Placed")["message"].endswith(
        "; asked default/low, of lower priority, to write a checkpoint and make way"
    )
    assert world.condition(low, "Placed")["reason"] == "Preempted"
    assert {pod["metadata"].get("deletionTimestamp") is not None for pod in world.cluster.pods(low)} == {True}
    assert not world.cluster.pods(high)

    for pod in world.cluster.pods(low):
        last_words = '{"exitCode": 143, "reason": "Stopped", "message": "stopped after a checkpoint", "step": 42}'
        world.cluster.set_pod(pod, phase="Failed", code=143, message=last_words)
    world.settle()
    world.cluster.finish_deletions()
    world.train()

    assert states(world, low, high) == ["Waiting", "Training"]
    waiting = world.condition(low, "Placed")
    assert waiting["reason"] == "Preempted"
    assert waiting["message"].startswith("made way for default/high; stage 0 needs 1 cpu, 4Gi memory and 1 nvidia")
    assert world.status(low)["lastCheckpointStep"] == 42
    assert {"Preempting", "Preempted"} <= set(world.told())

    end(world, high)
    assert states(world, low, high) == ["Training", "Succeeded"]
    status = world.status(low)
    assert (status["restarts"], status["disruptions"], status["preemptions"]) == (0, 0, 1)
    assert "preemptedBy" not in status


@pytest.mark.parametrize("priority", [LOW, None])
def test_nobody_makes_way_for_an_equal_or_a_lower_one(priority):
    world = World(nodes(1))
    classes(world)
    running = submit(world, "running", stages=1, priority=LOW)
    world.train()
    submit(world, "other", stages=1, priority=priority)
    world.train()

    assert states(world, running) == ["Training"]


def test_a_class_that_never_preempts_waits_at_the_head_of_the_line():
    world = World(nodes(1))
    world.cluster._put(priority_class("polite", 1000, policy="Never"))
    running = submit(world, "running", stages=1)
    world.train()
    older = submit(world, "older", stages=1)
    polite = submit(world, "polite", stages=1, priority="polite")
    assert states(world, running, polite) == ["Training", "Waiting"]

    end(world, running)
    assert states(world, older, polite) == ["Waiting", "Training"]


def test_a_class_that_lets_only_gangs_preempt_does():
    world = World(nodes(1))
    world.cluster._put(priority_class("gangs", 1000, policy="Never", gangs=True))
    running = submit(world, "running", stages=1)
    world.train()
    submit(world, "gang", stages=1, priority="gangs")

    assert world.condition(running, "Placed")["reason"] == "Preempted"


def test_nobody_makes_way_if_the_job_would_not_fit_even_then():
    world = World(nodes(3))
    classes(world)
    high = submit(world, "high", stages=2, priority=HIGH)
    low = submit(world, "low", stages=1, priority=LOW)
    world.train()
    huge = submit(world, "huge", stages=3, priority=HIGH)

    assert states(world, high, low) == ["Training", "Training"]
    assert world.condition(huge, "Placed")["reason"] == "NoRoom"


def test_the_lowest_and_among_equals_the_youngest_makes_way():
    world = World(nodes(3))
    classes(world)
    first = submit(world, "first", stages=1)
    middle = submit(world, "middle", stages=1, priority=LOW)
    second = submit(world, "second", stages=1)
    world.train()

    submit(world, "high", stages=1, priority=HIGH)

    reasons = [world.condition(key, "Placed")["reason"] for key in (first, middle, second)]
    assert reasons == ["Placed", "Placed", "Preempted"]


def test_one_large_job_makes_way_rather_than_several_small_ones():
    world = World(nodes(4))
    classes(world)
    large = submit(world, "large", stages=2)
    small = [submit(world, f"small{number}", stages=1) for number in range(2)]
    world.train()

    submit(world, "high", stages=2, priority=HIGH)

    reasons = [world.condition(key, "Placed")["reason"] for key in (large, *small)]
    assert reasons == ["Preempted", "Placed", "Placed"]


def test_what_is_already_leaving_is_waited_for_and_nobody_else_is_asked():
    world = World(nodes(2))
    classes(world)
    leaving, staying = submit(world, "leaving", stages=1), submit(world, "staying", stages=1)
    world.train()
    world.cluster.edit(leaving, suspend=True)
    world.settle()

    high = submit(world, "high", stages=1, priority=HIGH)

    assert states(world, staying) == ["Training"]
    assert world.condition(high, "Placed")["message"].endswith("it fits once the pods that are ending now have ended")


def test_a_victim_that_outlives_its_grace_on_a_dead_node_is_not_waited_for():
    world = World(nodes(2))
    classes(world)
    older, younger = submit(world, "older", stages=1), submit(world, "younger", stages=1)
    world.train()
    high = submit(world, "high", stages=1, priority=HIGH)
    assert world.condition(younger, "Placed")["reason"] == "Preempted"

    world.cluster.pass_time(60)
    world.settle()

    assert world.condition(older, "Placed")["reason"] == "Preempted"
    world.cluster.finish_deletions()
    world.train()
    assert states(world, high) == ["Training"]


def test_an_asker_that_goes_away_before_it_was_heard_has_asked_nothing():
    world = World(nodes(1))
    classes(world)
    low = submit(world, "low", stages=1, priority=LOW)
    world.train()
    world.cluster.pass_time(1)
    high = world.submit(job("high", parallelism={"pipeline": 1}, scheduling={"priorityClassName": HIGH}))
    world.reconcile(high)
    assert [each["name"] for each in world.status(high)["preempts"]] == ["default/low"]

    world.cluster.edit(high, suspend=True)
    world.settle()

    assert states(world, low, high) == ["Training", "Suspended"]
    assert world.status(high)["preempts"] == []


def test_a_job_that_made_way_never_takes_the_room_back_from_the_one_that_asked():
    world = World(nodes(2))
    classes(world)
    low, high = submit(world, "low", stages=2, priority=LOW), Key("default", "high")
    world.train()
    submit(world, "high", stages=1, priority=HIGH)

    for _ in range(5):
        world.cluster.finish_deletions()
        world.settle(low)
        world.train()

    assert states(world, low, high) == ["Waiting", "Training"]
    assert world.status(low)["preemptions"] == 1
