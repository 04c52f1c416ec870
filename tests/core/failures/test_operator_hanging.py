"""A gang in which nothing goes on: who is named, and what follows."""

import pytest

from pipelinejob.contract.progress import Phase, Progress, Waits
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes

PIPELINE = {"device": "cpu", "parallelism": {"pipeline": 3}}
STUCK = "no progress for 300 s after step 7"


def says(world, stage, *, waits_for=None, seconds=0.0, stuck=STUCK, heard=0, waits=False):
    """Let a stage wait for another, `all` others, or nobody."""
    whom = {"all": {}, None: None}.get(waits_for, {"replica": 0, "stage": waits_for})
    world.cluster.answers[f"gpt-r0-s{stage}"] = Progress(
        replica=0,
        stage=stage,
        attempt=1,
        phase=Phase.STARTING if waits else Phase.TRAINING,
        step=7,
        stuck=stuck,
        waits=None if whom is None else Waits(**whom, seconds=seconds),
        control_port=5000 + stage,
        incarnation=heard,
        awaits_incarnation=waits,
    )


def training(**changes):
    world = World(nodes(4, gpus=8))
    key = world.submit(job(**(PIPELINE | changes)))
    world.train()
    return world, key


@pytest.mark.parametrize(
    ("waits", "culprit", "words"),
    [
        ((1, None, 1), 1, "it waits for nobody; stage 0 of replica 0 has waited for it for 299 s; stage 2"),
        ((1, 2, None), 2, "it waits for nobody; stage 1 of replica 0 has waited for it"),
        (("all", "all", None), 2, "it waits for nobody. Each stage"),
        ((1, "absent", 1), 1, "it does not answer; stage 0"),
        ((1, 2, 0), 2, "it was the last to wait, for one that waits itself"),
    ],
)
def test_the_stage_that_the_others_wait_for_is_named_and_the_gang_restarts(waits, culprit, words):
    world, key = training()
    for stage, whom in enumerate(waits):
        if whom != "absent":
            says(world, stage, waits_for=whom, seconds=299 - stage)
    world.cluster.pass_time(60)
    world.settle()

    message = world.condition(key, "Ready")["message"]
    assert message.startswith(f"Stage {culprit} of replica 0 (pod gpt-r0-s{culprit}) failed: {STUCK}; it")
    assert words in message
    assert (world.status(key)["attempt"], world.status(key)["restarts"]) == (2, 1)


def test_nothing_follows_before_each_stage_has_written_its_stacks():
    world, key = training()
    for stage, whom in enumerate((1, None, 1)):
        says(world, stage, waits_for=whom, seconds=299, stuck=None if stage == 1 else STUCK)
    world.cluster.pass_time(60)
    world.settle()
    assert world.status(key)["attempt"] == 1

    says(world, 1)
    world.cluster.pass_time(60)
    world.settle()
    assert world.status(key)["attempt"] == 2


def test_a_stage_that_waits_long_in_a_gang_that_goes_on_is_left_alone():
    world, key = training()
    for stage in range(3):
        says(world, stage, waits_for=1, seconds=40, stuck=None)
    world.cluster.pass_time(60)
    world.settle()
    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 1)


def test_with_recovery_in_place_only_the_one_that_hangs_is_replaced():
    world, key = training(recovery={"inPlace": True})
    for stage in range(3):
        says(world, stage, stuck=None, waits=True)
    world.settle()
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()}
    for stage, whom in enumerate((1, None, 1)):
        says(world, stage, waits_for=whom, seconds=299, heard=1)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()

    after = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.cluster.all_pods()}
    assert {name for name in before if before[name] != after[name]} == {"gpt-r0-s1"}
    assert "only gpt-r0-s1 is replaced" in world.condition(key, "Ready")["message"]
    assert world.status(key)["attempt"] == 1
