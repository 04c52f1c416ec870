"""What stages report, and what the status says of it: how often, of which attempt, and who straggles."""

import pytest

from pipelinejob.contract.progress import Phase, Progress
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes


@pytest.fixture
def world():
    return World(nodes(2))


def test_transition_times_move_only_with_a_flip(world):
    key = world.submit(job())
    world.train()
    world.cluster.pass_time(60)
    world.cluster.answers = {"gpt-r0-s0": report(step=7)}
    world.settle()

    assert world.status(key)["step"] == 7
    assert {each["lastTransitionTime"] for each in world.status(key)["conditions"]} == {"2026-01-01T00:00:00Z"}


def report(**changes):
    base = {"replica": 0, "stage": 0, "attempt": 1, "phase": Phase.TRAINING, "step": 0}
    return Progress.model_validate(base | changes)


def test_measurements_are_written_no_more_often_than_the_interval(world):
    key = world.submit(job())
    world.train()
    world.cluster.answers = {"gpt-r0-s0": report(step=1, loss=5.5)}
    world.settle()
    assert world.status(key)["loss"] == "5.500"
    world.cluster.answers = {"gpt-r0-s0": report(step=2, loss=5.0)}
    world.cluster.pass_time(9)
    before = len(world.cluster.writes)
    world.settle()
    assert len(world.cluster.writes) == before

    world.cluster.pass_time(1)
    world.settle()

    assert (world.status(key)["step"], world.status(key)["loss"]) == (2, "5.000")
    assert len(world.cluster.writes) == before + 1


def test_measurements_of_an_older_attempt_are_not_believed(world):
    key = world.submit(job())
    world.train()
    world.cluster.answers = {"gpt-r0-s0": report(step=50, attempt=0)}

    world.settle()

    assert "step" not in world.status(key)


def test_measurements_of_stages_stand_with_the_stages(world):
    key = world.submit(job())
    world.train()
    world.cluster.answers = {
        "gpt-r0-s0": report(step=3, bubble_ratio=0.2, utilization_ratio=0.7, checkpoint_step=2),
        "gpt-r0-s1": report(stage=1, step=3, bubble_ratio=0.4, loss=4.25),
    }

    world.settle()

    status = world.status(key)
    assert (status["stages"][0]["bubble"], status["stages"][0]["utilization"]) == ("20.0%", "70.0%")
    assert (status["bubble"], status["loss"], status["lastCheckpointStep"]) == ("30.0%", "4.250", 2)
    assert status["progress"] == "3%"


def test_of_layers_of_unknown_cost_the_status_states_ratios_and_no_seconds(world):
    key = world.submit(job(model={"entrypoint": "model:build", "numLayers": 6}))
    world.settle()

    plan = world.status(key)["plan"]

    assert (plan["source"], plan["bubble"]) == ("equal", "20.0%")
    assert not {"stepSeconds", "tokensPerSecond"} & set(plan)
    assert all("memoryBytes" not in stage for stage in plan["stages"])


def measure(world, *utilization, step):
    world.cluster.pass_time(10)
    world.cluster.answers = {
        f"gpt-r0-s{stage}": report(stage=stage, step=step, utilization_ratio=ratio)
        for stage, ratio in enumerate(utilization)
    }
    world.settle()


def test_a_stage_that_straggles_twice_in_a_row_degrades_the_job_until_it_is_well_again():
    world = World(nodes(4))
    alike = {"entrypoint": "model:build", "numLayers": 4}
    key = world.submit(job(model=alike, parallelism={"pipeline": 4}))
    world.train()
    measure(world, 0.5, 0.5, 0.9, 0.5, step=1)
    assert (world.status(key)["state"], world.condition(key, "Degraded")["status"]) == ("Training", "False")
    measure(world, 0.5, 0.5, 0.9, 0.5, step=2)
    degraded = world.condition(key, "Degraded")
    assert (world.status(key)["state"], degraded["status"], degraded["reason"]) == (
        "Degraded",
        "True",
        "StageStraggles",
    )
    assert "stage 2 of replica 0 (node n2) computes 1.8 times" in degraded["message"]
    writes = len(world.cluster.writes)
    world.cluster.pass_time(3)
    world.settle()
    assert len(world.cluster.writes) == writes
    measure(world, 0.5, 0.5, 0.9, 0.5, step=3)

    measure(world, 0.5, 0.5, 0.6, 0.5, step=4)

    assert (world.status(key)["state"], world.condition(key, "Degraded")["status"]) == ("Training", "False")
    assert world.told().count("StageStraggles") == 1


def test_steps_that_were_skipped_or_undone_are_told_as_they_come(world):
    key = world.submit(job(training={"steps": 100, "onNotFinite": "Skip"}))
    world.train()

    def count(**counts):
        world.cluster.pass_time(10)
        stages = range(len(world.status(key)["stages"]))
        world.cluster.answers = {f"gpt-r0-s{stage}": report(stage=stage, **counts) for stage in stages}
        world.settle()

    count(step=3)
    count(step=5, skipped_steps=3, not_finite_steps=2)
    count(step=5, skipped_steps=3, not_finite_steps=2)
    count(step=6, skipped_steps=4, not_finite_steps=3, roll_backs=1)

    assert world.told().count("StepsSkipped") == 2
    assert world.told().count("RolledBack") == 1
    assert (world.status(key)["skippedSteps"], world.status(key)["rollBacks"]) == (3, 1)
    events = {event.reason: event for event in world.cluster.events}
    assert events["StepsSkipped"].type == "Warning"
    assert (
        "1 step, whose loss or gradients were infinite or no numbers, changed nothing" in events["StepsSkipped"].message
    )


def test_checkpoints_that_could_not_be_written_are_told_with_why():
    world = World(nodes(3))
    key = world.submit(job(training={"steps": 100}))
    world.train()

    def save(**counts):
        world.cluster.pass_time(10)
        stages = range(len(world.status(key)["stages"]))
        world.cluster.answers = {f"gpt-r0-s{stage}": report(stage=stage, **counts) for stage in stages}
        world.settle()

    save(step=10, checkpoint_step=10)
    full = {"failed_checkpoints": 1, "checkpoint_failure": "step 20: cannot write: No space left on device"}
    save(step=20, checkpoint_step=10, **full)
    save(step=25, checkpoint_step=10, **full)
    save(step=30, checkpoint_step=30, failed_checkpoints=1)

    assert world.told().count("CheckpointFailed") == 1
    assert world.status(key)["failedCheckpoints"] == 1
    event = next(event for event in world.cluster.events if event.reason == "CheckpointFailed")
    assert event.type == "Warning"
    assert "No space left on device. Training goes on; the last is of step 10, and the next" in event.message


def test_a_stage_that_was_planned_to_do_more_is_no_straggler():
    world = World(nodes(3))
    key = world.submit(job(parallelism={"pipeline": 3}, partition={"layers": [1, 6, 1]}))
    world.train()
    busy = [1 - float(stage["bubble"].rstrip("%")) / 100 for stage in world.status(key)["plan"]["stages"]]
    assert max(busy) > 1.3 * sorted(busy)[1]

    for step in range(1, 4):
        measure(world, *busy, step=step)

    assert world.condition(key, "Degraded")["reason"] == "AsExpected"
