"""Many jobs: whose turn it is, and who may go past whom."""

from pipelinejob_operator.cluster import ForbiddenError
from support.clusters.operatorworld import World
from support.clusters.priorities import HIGH, LOW, classes, end, states, submit
from support.manifests.jobs import job, node, nodes, priority_class

ON_A, ON_B = ({"spec": {"nodeSelector": {"pool": pool}}} for pool in "ab")


# Whose turn it is


def test_the_higher_priority_goes_first_then_the_older_job():
    world = World(nodes(2))
    classes(world)
    running = submit(world, "running", stages=2, priority=HIGH)
    world.train()
    old, young, high = (
        submit(world, "old", stages=2),
        submit(world, "young", stages=2),
        submit(world, "high", stages=2, priority=LOW),
    )

    order = []
    for ended in (running, high, old):
        end(world, ended)
        order += [key.name for key in (old, young, high) if states(world, key) == ["Training"]]

    assert order == ["high", "old", "young"]


def test_the_clusters_default_class_counts_for_jobs_that_name_none():
    world = World(nodes(1))
    classes(world)
    world.cluster._put(priority_class("standard", 500, default=True))
    running = submit(world, "running", stages=1, priority=HIGH)
    world.train()
    unnamed, named = submit(world, "unnamed", stages=1), submit(world, "named", stages=1, priority=LOW)
    message = world.condition(named, "Placed")["message"]
    assert message.endswith("; behind default/unnamed, which has priority 500 over 10")

    end(world, running)
    assert states(world, named, unnamed) == ["Waiting", "Training"]


def test_a_class_that_does_not_exist_is_said_to_be_missing_and_blocks_nobody():
    world = World(nodes(1))
    lost, other = submit(world, "lost", stages=1, priority="nonsense"), submit(world, "other", stages=1)

    assert world.condition(lost, "Placed")["reason"] == "NoPriorityClass"
    assert world.condition(lost, "Placed")["message"] == (
        "there is no PriorityClass nonsense; create it, or name another in spec.scheduling.priorityClassName"
    )
    assert states(world, lost, other) == ["Waiting", "Starting"]

    end(world, other)
    world.cluster._put(priority_class("nonsense", 1))
    world.train()
    assert states(world, lost) == ["Training"]


def test_the_pods_of_a_job_carry_its_class_so_that_no_lower_pod_takes_a_single_stage():
    world = World(nodes(2))
    classes(world)
    key = submit(world, "gpt", stages=2, priority=HIGH)

    assert {pod["spec"]["priorityClassName"] for pod in world.cluster.pods(key)} == {HIGH}


# Who may go past whom


def test_a_younger_job_goes_past_an_older_one_beside_the_room_that_is_kept_for_it():
    world = World(nodes(3))
    running = submit(world, "running", stages=2)
    world.train()
    older, younger = submit(world, "older", stages=2), submit(world, "younger", stages=1)

    assert world.status(older)["waitsFor"] == ["default/running"]
    assert world.condition(older, "Placed")["message"].endswith("; room is kept for it until default/running has ended")
    assert world.condition(younger, "Placed")["message"] == (
        "1 stages on 1 node; passes default/older, for which other room is kept"
    )

    world.train()
    end(world, running)
    assert states(world, older, younger) == ["Training", "Training"]


def test_who_was_placed_in_the_very_second_counts_as_there_first_whatever_its_name():
    world = World(nodes(1))
    world.submit(job("z-running", parallelism={"pipeline": 1}))
    world.settle()
    waits = world.submit(job("a-waits", parallelism={"pipeline": 1}))
    world.settle()

    assert world.status(waits)["waitsFor"] == ["default/z-running"]


def test_a_younger_job_does_not_take_what_the_older_waits_for():
    world = World(nodes(3))
    running = submit(world, "running", stages=1)
    world.train()
    older, younger = submit(world, "older", stages=3), submit(world, "younger", stages=1)

    assert world.condition(younger, "Placed")["reason"] == "NotItsTurn"
    assert world.condition(younger, "Placed")["message"] == (
        "waits behind default/older, which is older and waits for room itself"
    )
    end(world, running)
    assert states(world, older, younger) == ["Training", "Waiting"]


def test_room_stays_kept_where_it_was_however_many_go_past():
    """Two leaves of two nodes; the older job needs a whole one. Without a fixed choice, small jobs could take turns."""
    leaf = "topology.kubernetes.io/rack"
    world = World([node(f"{rack}{n}", labels={leaf: rack}) for rack in "ab" for n in range(2)])
    first = submit(world, "first", stages=1, template={"spec": {"nodeSelector": {leaf: "a"}}})
    second = submit(world, "second", stages=1, template={"spec": {"nodeSelector": {leaf: "b"}}})
    world.train()
    older = submit(world, "older", stages=2, topology={"levels": [leaf], "pipeline": {"required": leaf}})
    kept = world.status(older)["waitsFor"]
    small = [submit(world, f"small{n}", stages=1) for n in range(6)]

    for _ in range(6):
        world.train()
        for key in small:
            if states(world, key) == ["Training"]:
                end(world, key)
    assert world.status(older)["waitsFor"] == kept
    assert states(world, *small) == ["Succeeded"] * 6

    end(world, first if kept == ["default/first"] else second)
    assert states(world, older) == ["Training"]


def test_nobody_goes_past_a_long_line():
    world = World(nodes(3))
    submit(world, "running", stages=2)
    world.train()
    for number in range(9):
        submit(world, f"waiting{number}", stages=3)
    last = submit(world, "last", stages=1)

    assert world.condition(last, "Placed")["reason"] == "FarBack"
    assert world.condition(last, "Placed")["message"] == (
        "waits in line: more than 8 jobs that wait for room come before it"
    )


def test_a_long_line_keeps_nobody_from_nodes_that_it_could_not_use():
    world = World([*(node(f"a{n}", labels={"pool": "a"}) for n in range(3)), node("b0", labels={"pool": "b"})])
    submit(world, "running", stages=2, template=ON_A)
    world.train()
    for number in range(9):
        submit(world, f"waiting{number}", stages=3, template=ON_A)
    on_a = submit(world, "on-a", stages=1, template=ON_A)
    on_b = submit(world, "on-b", stages=1, template=ON_B)

    assert states(world, on_a, on_b) == ["Waiting", "Starting"]


def test_a_resumed_job_waits_from_then_on_and_keeps_nobody_from_nodes_that_it_could_not_use():
    world = World([node("a", gpus=2, labels={"pool": "a"}), node("b", gpus=2, labels={"pool": "b"})])
    first = submit(world, "first", stages=2, template=ON_A)
    world.train()
    world.cluster.edit(first, suspend=True)
    world.train()
    world.cluster.finish_deletions()
    world.train()
    second = submit(world, "second", stages=2, template=ON_A)
    world.train()
    world.cluster.pass_time(1)
    world.cluster.edit(first, suspend=False)
    world.settle()
    third = submit(world, "third", stages=2, template=ON_B)

    assert states(world, first, second, third) == ["Waiting", "Training", "Starting"]
    assert world.status(first)["waitsFor"] == ["default/second"]
    assert world.condition(first, "Placed")["message"].endswith("room is kept for it until default/second has ended")


def test_a_resumed_job_stands_behind_those_that_waited_meanwhile():
    world = World(nodes(1))
    first = submit(world, "first", stages=1)
    world.train()
    world.cluster.edit(first, suspend=True)
    world.train()
    world.cluster.finish_deletions()
    second = submit(world, "second", stages=1)
    world.train()
    third = submit(world, "third", stages=1)
    world.cluster.pass_time(1)
    world.cluster.edit(first, suspend=False)
    world.train()
    end(world, second)

    assert states(world, first, third) == ["Waiting", "Training"]


def test_a_job_that_comes_back_from_a_refusal_keeps_nobody_from_nodes_that_it_could_not_use():
    world = World([node("a", gpus=2, labels={"pool": "a"}), node("b", gpus=2, labels={"pool": "b"})])
    refuse(world, "first")
    first = submit(world, "first", stages=2, template=ON_A)
    second = submit(world, "second", stages=2, template=ON_A)
    world.train()
    world.cluster.refuse = lambda verb, item: None
    world.cluster.pass_time(60)
    world.settle()
    third = submit(world, "third", stages=2, template=ON_B)

    assert states(world, first, second, third) == ["Waiting", "Training", "Starting"]
    assert world.status(first)["waitsFor"] == ["default/second"]


def refuse(world, name):
    """Let a quota refuse the pods of this job."""

    def judge(verb, item):
        is_its_pod = verb == "apply" and item["kind"] == "Pod" and item["metadata"]["name"].startswith(f"{name}-")
        return ForbiddenError("exceeded quota: compute") if is_its_pod else None

    world.cluster.refuse = judge
