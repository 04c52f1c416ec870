"""What follows when a stage fails, is taken away or can't start: root cause, failure policy, the next attempt."""

import pytest

from pipelinejob.base import names
from support.clusters.failing_pods import carry_on, fail, last_words
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes


@pytest.fixture
def world():
    return World(nodes(3))


def test_a_failed_stage_restarts_the_whole_gang_as_the_next_attempt(world):
    key = world.submit(job())
    world.train()
    fail(world, "gpt-r0-s1", 1, message="Traceback: boom")
    world.settle()
    assert world.status(key)["state"] == "Restarting"
    assert (
        "Stage 1 of replica 0 (pod gpt-r0-s1) failed with exit code 1: Traceback: boom"
        in (world.condition(key, "Ready")["message"])
    )

    carry_on(world)

    status = world.status(key)
    assert (status["state"], status["attempt"], status["restarts"], status["disruptions"]) == ("Training", 2, 1, 0)
    assert [stage["restarts"] for stage in status["stages"]] == [0, 1]
    assert {pod["metadata"]["labels"][names.LABEL_ATTEMPT] for pod in world.cluster.all_pods()} == {"2"}
    assert world.told() == [
        *("Placed", "StagesReady", "StageFailed", "Restarting"),
        *("Placed", "StagesReady"),
    ]


def test_nothing_of_the_next_attempt_comes_before_the_last_is_gone(world):
    key = world.submit(job())
    world.train()
    fail(world, "gpt-r0-s1", 1)
    world.settle()

    left = world.cluster.all_pods()

    assert [pod["metadata"]["name"] for pod in left] == ["gpt-r0-s0"]
    assert "deletionTimestamp" in left[0]["metadata"]
    assert world.status(key)["attempt"] == 2
    assert all("node" not in stage for stage in world.status(key)["stages"])


def test_a_stage_that_lost_its_peer_is_not_the_cause(world):
    key = world.submit(job(failurePolicy={"maxRestarts": 0}))
    world.train()
    fail(world, "gpt-r0-s0", 75, message=last_words(75, "PeerLost", "stage 1 went away"))
    world.settle()
    assert world.status(key)["state"] == "Starting"
    world.cluster.pass_time(2)
    fail(world, "gpt-r0-s1", 137)

    world.settle()

    assert "pod gpt-r0-s1" in world.condition(key, "Succeeded")["message"]


def test_if_only_peers_are_lost_the_gang_restarts_after_a_while(world):
    key = world.submit(job())
    world.train()
    fail(world, "gpt-r0-s0", 75)
    assert world.reconcile(key) == 1

    world.cluster.pass_time(5)
    carry_on(world)

    assert (world.status(key)["attempt"], world.status(key)["restarts"]) == (2, 1)


def test_a_users_error_is_final_and_told_in_the_trainers_words(world):
    key = world.submit(job())
    world.train()
    fail(world, "gpt-r0-s0", 64, message=last_words(64, "DataNotFound", "no file matches /data/*.txt; mount it"))

    world.settle()

    succeeded = world.condition(key, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "DataNotFound")
    assert "no file matches /data/*.txt; mount it" in succeeded["message"]
    assert world.status(key)["stages"][0]["exitCode"] == 64


def test_a_rule_may_retry_a_users_error(world):
    rules = [{"action": "Restart", "onExitCodes": [64]}]
    key = world.submit(job(failurePolicy={"rules": rules}))
    world.train()
    fail(world, "gpt-r0-s0", 64)

    carry_on(world)

    assert (world.status(key)["state"], world.status(key)["restarts"]) == ("Training", 1)


def test_the_first_rule_that_matches_counts(world):
    rules = [{"action": "Fail", "onExitCodes": [3]}, {"action": "Restart", "onExitCodes": [3]}]
    key = world.submit(job(failurePolicy={"rules": rules}))
    world.train()
    fail(world, "gpt-r0-s0", 3)

    world.settle()

    assert world.status(key)["state"] == "Failed"


def test_a_rule_by_condition_may_end_what_was_taken_away(world):
    rules = [{"action": "Fail", "onPodConditions": [{"type": "DisruptionTarget"}]}]
    key = world.submit(job(failurePolicy={"rules": rules}))
    world.train()
    fail(world, "gpt-r0-s0", 143, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "Drained"}])
    world.settle()
    assert world.status(key)["state"] == "Failed"


def test_a_failure_that_is_ignored_counts_against_no_limit(world):
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "example.com/BadLink"}]}]
    key = world.submit(job(failurePolicy={"maxRestarts": 0, "rules": rules}))
    world.train()
    fail(world, "gpt-r0-s0", 1, conditions=[{"type": "example.com/BadLink", "status": "True"}])
    carry_on(world)
    status = world.status(key)
    assert (status["state"], status["restarts"], status["disruptions"]) == ("Training", 0, 1)

    fail(world, "gpt-r0-s0", 1, conditions=[{"type": "example.com/BadLink", "status": "False"}])
    world.settle()
    assert world.status(key)["state"] == "Failed"


def test_restarts_count_within_their_window_only(world):
    key = world.submit(job(failurePolicy={"maxRestarts": 1, "restartWindowSeconds": 3600}))
    world.train()
    for _ in range(3):
        fail(world, "gpt-r0-s1", 1)
        carry_on(world)
        assert world.status(key)["state"] == "Training"
        assert len(world.status(key)["restartTimes"]) == 1
        world.cluster.pass_time(3601)
    assert world.status(key)["restarts"] == 3

    fail(world, "gpt-r0-s1", 1)
    carry_on(world)
    fail(world, "gpt-r0-s1", 1)
    world.settle()
    assert world.condition(key, "Succeeded")["reason"] == "RestartsExhausted"
    assert "maxRestarts: 1 within 3600 s" in world.condition(key, "Succeeded")["message"]


def test_restarts_are_bounded_and_the_end_says_so(world):
    key = world.submit(job(failurePolicy={"maxRestarts": 1}))
    world.train()
    fail(world, "gpt-r0-s1", 1)
    carry_on(world)
    fail(world, "gpt-r0-s1", 1)
    world.settle()

    succeeded = world.condition(key, "Succeeded")

    assert (succeeded["status"], succeeded["reason"]) == ("False", "RestartsExhausted")
    assert "maxRestarts: 1" in succeeded["message"]


def test_a_failed_job_keeps_its_ended_pods_and_stops_the_others(world):
    world.submit(job(failurePolicy={"maxRestarts": 0}))
    world.train()
    fail(world, "gpt-r0-s1", 1)

    world.settle()
    world.cluster.finish_deletions()

    assert [pod["metadata"]["name"] for pod in world.cluster.all_pods()] == ["gpt-r0-s1"]


def test_a_second_restart_backs_off(world):
    key = world.submit(job())
    world.train()
    fail(world, "gpt-r0-s1", 1)
    carry_on(world)
    fail(world, "gpt-r0-s1", 1)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    assert world.cluster.all_pods() == []

    world.cluster.pass_time(5)
    world.train()

    assert world.status(key)["attempt"] == 3


def waiting(reason, message):
    return {"containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": reason, "message": message}}}]}


def test_an_image_that_cant_be_pulled_names_stage_image_and_remedy_and_ends_the_job_in_time(world):
    key = world.submit(job(failurePolicy={"maxRestarts": 0}))
    world.settle()
    world.cluster.bind()
    pod = world.cluster.pod("gpt-r0-s1")
    world.cluster.set_pod(pod, phase="Pending", **waiting("ImagePullBackOff", "no such host"))
    world.settle()
    degraded = world.condition(key, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "ImagePullBackOff")
    assert "Stage 1 of replica 0 (pod gpt-r0-s1, image trainer:1)" in degraded["message"]
    assert "pull secret" in degraded["message"]

    world.cluster.pass_time(300)
    world.settle()

    succeeded = world.condition(key, "Succeeded")
    assert succeeded["reason"] == "RestartsExhausted"
    assert "it did not start within 300 s: ImagePullBackOff: no such host" in succeeded["message"]
    assert all(pod["metadata"].get("deletionTimestamp") or not pod for pod in world.cluster.all_pods())


def test_alternating_pull_reasons_are_told_once(world):
    key = world.submit(job())
    world.settle()
    world.cluster.bind()
    for reason in ("ErrImagePull", "ImagePullBackOff", "ErrImagePull", "ImagePullBackOff"):
        world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Pending", **waiting(reason, "no such host"))
        world.settle()

    assert world.told().count("StageStuck") == 1
    assert world.condition(key, "Degraded")["status"] == "True"


def test_an_image_that_gets_mended_in_time_trains(world):
    key = world.submit(job())
    world.settle()
    world.cluster.bind()
    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Pending", **waiting("ErrImagePull", "429"))
    world.settle()

    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Running", ready=True)
    world.settle()

    assert world.status(key)["state"] == "Training"
    assert world.condition(key, "Degraded")["status"] == "False"


def test_a_gang_that_is_not_bound_in_time_is_taken_back_and_tried_again(world):
    key = world.submit(job())
    world.settle()
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: volume node affinity conflict",
    }
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Pending", conditions=[unschedulable])
    world.cluster.pass_time(300)
    world.settle()
    assert world.cluster.all_pods() == []
    assert world.condition(key, "Placed")["reason"] == "GangTimeout"
    assert "volume node affinity conflict" in world.condition(key, "Placed")["message"]

    world.cluster.pass_time(121)
    world.train()

    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 2)


def test_the_cause_survives_in_the_events(world):
    world.submit(job())
    world.train()
    fail(world, "gpt-r0-s1", 1, message="CUDA error: an illegal memory access was encountered")
    world.settle()

    told = next(event for event in world.cluster.events if event.reason == "StageFailed")

    assert (told.type, "illegal memory access" in told.message) == ("Warning", True)


def test_two_replicas_restart_together():
    world = World([node("big", gpus=4)])
    key = world.submit(job(parallelism={"pipeline": 2, "data": 2}))
    world.train()
    assert world.status(key)["stagesReady"] == "4/4"
    fail(world, "gpt-r1-s0", 1)

    carry_on(world)

    assert world.status(key)["stagesReady"] == "4/4"
    assert {pod["metadata"]["labels"][names.LABEL_ATTEMPT] for pod in world.cluster.all_pods()} == {"2"}
