"""A stage that holds up the others: what it is slow at, and what is done about it, if it pays."""

import pytest

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Phase, Progress, Spent
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.controller.turns.remedies import weigh
from pipelinejob_operator.controller.turns.stragglers import Slowness, find_slow, relative_speeds
from support.clusters.operatorworld import Mortal, World
from support.manifests.jobs import job, nodes

TEN_PROCESSORS = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "10"}}}]}}
ALIKE = {
    "model": {"entrypoint": "model:build", "numLayers": 12},
    "parallelism": {"pipeline": 4},
    "training": {"steps": 1000},
    "template": TEN_PROCESSORS,  # of a node's 16
    "device": "cpu",
}
STATUS = PipelineJobStatus.model_validate(
    {
        "attempt": 1,
        "stages": [{"replica": 0, "stage": stage, "pod": f"s{stage}", "node": f"n{stage}"} for stage in range(3)],
    }
)


def report(stage, compute, **changes):
    return Progress(
        replica=0,
        stage=stage,
        attempt=1,
        phase=Phase.TRAINING,
        step=changes.pop("step", 10),
        step_s=2.0,
        utilization_ratio=compute,
        spent=Spent(step_s=2.0, compute_s=2.0 * compute, waiting_s=0.5, **changes),
    )


@pytest.mark.parametrize(
    ("odd", "at", "times", "gain"),
    [
        ({"compute": 0.9}, Slowness.COMPUTE, 2.25, 0.5),
        ({"compute": 0.4, "processor_s": 1.0}, Slowness.PROCESSOR, 2.25, 0.5),
        ({"compute": 0.4, "data_s": 1.0}, Slowness.INPUT, 2.25, 0.5),
        ({"compute": 0.2, "send_s": 1.5}, Slowness.LINK, 1.0, 0.0),
    ],
)
def test_what_a_stage_is_slow_at_is_told_apart(odd, at, times, gain):
    slow = find_slow([report(0, 0.4), report(1, **odd), report(2, 0.4)], STATUS)

    assert (slow.rank.stage, slow.node, slow.at) == (1, "n1", at)
    assert (slow.times, slow.gain) == pytest.approx((times, gain))


@pytest.mark.parametrize(
    "reports",
    [
        [report(0, 0.5), report(1, 0.6), report(2, 0.4)],
        [report(0, 0.4, processor_s=1.0), report(1, 0.4, processor_s=1.1), report(2, 0.4, processor_s=0.9)],
        [report(0, 0.2), report(1, 0.9)],  # one has not said anything yet
    ],
)
def test_a_stage_that_is_hardly_slower_is_no_straggler(reports):
    assert find_slow(reports, STATUS) is None


def test_speeds_are_relative_to_the_fastest_stage():
    assert relative_speeds([report(0, 0.4), report(1, 0.8), report(2, 0.5)], STATUS) == (1.0, 0.5, 0.8)


@pytest.mark.parametrize(("steps_left", "pays"), [(61, True), (60, False)])
def test_a_remedy_pays_if_what_is_left_gains_more_than_it_costs(steps_left, pays):
    worth = weigh(0.5, steps_left=steps_left, cost_s=30.0, source="what the last start took")

    assert worth.pays is pays
    assert worth.words.endswith("and to cost 30 s (what the last start took)")


# What is done


def submitted(world, recovery, **changes):
    """Return a job of four stages that trains, 40 s after it was let go."""
    key = world.submit(job(**(ALIKE | {"recovery": recovery} | changes)))
    world.settle()
    world.cluster.bind()
    world.cluster.start()
    world.cluster.pass_time(40)
    if recovery.get("inPlace"):
        world.cluster.answers = {f"gpt-r0-s{stage}": waiting(stage) for stage in range(4)}
    world.settle()
    return key


def waiting(stage):
    return Progress(
        replica=0,
        stage=stage,
        attempt=1,
        phase=Phase.STARTING,
        step=0,
        awaits_incarnation=True,
        control_port=5000 + stage,
    )


def measure(world, *shares, step, attempt=1):
    """Let some time pass, in which the stages computed for these shares of each step of 2 s."""
    world.cluster.pass_time(10)
    world.cluster.answers = {
        f"gpt-r0-s{stage}": report(stage, share, step=step).model_copy(
            update={"attempt": attempt, "incarnation": 1, "control_port": 5000 + stage}
        )
        for stage, share in enumerate(shares)
    }
    world.settle()


def messages(world, reason):
    return [event.message for event in world.cluster.events if event.reason == reason]


def test_by_default_a_straggler_is_only_told_of():
    world = World(nodes(5))
    key = submitted(world, {"inPlace": True})
    writes = {verb for verb, _ in world.cluster.writes}
    for step in range(1, 5):
        measure(world, 0.3, 0.9, 0.3, 0.3, step=step)

    assert world.condition(key, "Degraded")["reason"] == "StageStraggles"
    assert {verb for verb, _ in world.cluster.writes} == writes
    assert "startSeconds" not in world.status(key)


def test_a_slow_stage_is_asked_to_hand_over_and_goes_to_another_node_once():
    world = World(nodes(6))
    key = submitted(world, {"inPlace": True, "stragglers": "Replace"})
    before = {stage["stage"]: stage["node"] for stage in world.status(key)["stages"]}
    deleted = []
    world.cluster.refuse = lambda verb, item: deleted.append(item) if verb == "delete" else None
    for step in (1, 2):
        measure(world, 0.3, 0.9, 0.3, 0.3, step=step)

    assert [(each.name, each.grace_s) for each in deleted] == [("gpt-r0-s1", None)]
    (said,) = messages(world, "ReplacingStraggler")
    assert "computes 3.0 times as long" in said
    assert said.endswith(
        "predicted to gain 1.200 s in each of 998 steps, 1198 s, and to cost 40 s (what the last start took)"
    )
    after = {stage["stage"]: stage["node"] for stage in world.status(key)["stages"]}
    assert {stage for stage in before if before[stage] != after[stage]} == {1}
    assert [each["node"] for each in world.status(key)["refusedNodes"]] == [before[1]]

    world.cluster.finish_deletions()
    world.settle()
    world.cluster.bind()
    world.cluster.start()
    world.cluster.answers = {f"gpt-r0-s{stage}": waiting(stage) for stage in range(4)}
    world.settle()
    for step in (3, 4):
        measure(world, 0.3, 0.3, 0.9, 0.3, step=step)

    assert (world.status(key)["attempt"], world.status(key)["recovery"]["incarnation"]) == (1, 2)
    assert len(messages(world, "ReplacingStraggler")) == 1
    assert "is done once in 3600 s" in world.condition(key, "Degraded")["message"]


@pytest.mark.parametrize(
    ("count", "step", "why"),
    [
        (6, 990, "Replace does not pay: predicted to gain 1.200 s in each of 9 steps, 11 s, and to cost 40 s"),
        (4, 1, "no other node has room for it now"),
    ],
)
def test_a_slow_stage_stays_where_its_replacement_would_not_pay_or_has_no_place(count, step, why):
    world = World(nodes(count))
    key = submitted(world, {"inPlace": True, "stragglers": "Replace"})
    for each in (step, step + 1):
        measure(world, 0.3, 0.9, 0.3, 0.3, step=each)

    degraded = world.condition(key, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "StageStraggles")
    assert why in degraded["message"]
    assert not messages(world, "ReplacingStraggler")


@pytest.mark.parametrize("verb", ["refuse", "lose_answer"])
@pytest.mark.parametrize("deadly", range(1, 6))
def test_an_operator_that_dies_at_any_write_replaces_a_slow_stage_once(verb, deadly):
    world = World(nodes(6))
    key = submitted(world, {"inPlace": True, "stragglers": "Replace"})
    measure(world, 0.3, 0.9, 0.3, 0.3, step=1)
    mortal = Mortal.__new__(Mortal)
    mortal.__dict__ = world.__dict__
    mortal.deadly = deadly
    setattr(world.cluster, verb, mortal.judge)
    measure(mortal, 0.3, 0.9, 0.3, 0.3, step=2)
    for _ in range(3):
        mortal.cluster.finish_deletions()
        mortal.settle()
        mortal.cluster.bind()
        mortal.cluster.start()
    world.cluster.answers = {f"gpt-r0-s{stage}": waiting(stage) for stage in range(4)}
    mortal.settle()

    status = world.status(key)
    assert (status["attempt"], status["recovery"]["replacements"]) == (1, 1)
    told = [(pod, incarnation.number) for pod, incarnation in world.cluster.told]
    assert len(told) == len(set(told))
    assert status["recovery"]["incarnation"] == max(number for _, number in told) >= 2
    assert {each["stage"] for each in status["stages"] if each["restarts"]} == {1}


def test_layers_are_divided_anew_by_measured_speeds_from_a_checkpoint():
    world = World(nodes(4))
    key = submitted(world, {"stragglers": "Repartition"})
    assert cuts(world) == ((0, 3), (3, 6), (6, 9), (9, 12))
    for step in (1, 2):
        measure(world, 0.3, 0.9, 0.3, 0.3, step=step)

    (said,) = messages(world, "Repartitioning")
    assert "go on from it with 4/1/4/3 layers instead of 3/3/3/3: predicted to gain" in said
    status = world.status(key)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)
    assert status["recovery"]["speeds"] == ["1", "0.333", "1", "1"]

    world.cluster.finish_deletions()
    world.train()
    assert cuts(world) == ((0, 4), (4, 5), (5, 9), (9, 12))
    for step in (3, 4):
        measure(world, 0.4, 0.3, 0.4, 0.3, step=step, attempt=2)  # as planned: it is slower, and has less to do
    assert world.condition(key, "Degraded")["reason"] == "AsExpected"


def cuts(world):
    (config_map,) = (item for item in world.cluster.objects.values() if item["kind"] == "ConfigMap")
    return Plan.from_json(config_map["data"]["plan.json"]).cuts
