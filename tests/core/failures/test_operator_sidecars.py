"""A stage is its trainer's container: what stands beside it neither ends it, nor holds its GPUs when it has ended."""

import pytest

from pipelinejob.contract.progress import Termination
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes

SHIPPER = {"name": "log-shipper", "image": "fluent-bit:3"}
TEMPLATE = {"spec": {"containers": [{"name": "trainer"}, SHIPPER]}}
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


@pytest.fixture
def world():
    return World(nodes(3))


@pytest.fixture
def key(world):
    key = world.submit(job(template=TEMPLATE, failurePolicy={"maxRestarts": 1, "rules": RULES}))
    world.train()
    return key


RULES = [{"action": "Fail", "onExitCodes": [42]}]


def ended(world, code, *, reason=None, message=""):
    words = {"exitCode": code, "finishedAt": world.cluster._time(), "message": message}
    return {"terminated": words | ({"reason": reason} if reason else {})}


def container(name, state, *, ready=None, **more):
    return {"name": name, "state": state, "ready": "running" in state if ready is None else ready} | more


def set_containers(world, name, *statuses, phase="Running", ready=False, **status):
    world.cluster.set_pod(world.cluster.pod(name), phase=phase, ready=ready, **status)
    pod = world.cluster.pod(name)
    world.cluster._put(pod | {"status": pod["status"] | {"containerStatuses": list(statuses)}})


def end_trainer(world, name, code, *, others=(("log-shipper", RUNNING),), **words):
    set_containers(
        world, name, *(container(*other) for other in others), container("trainer", ended(world, code, **words))
    )


def names_of(pods):
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def test_a_job_succeeds_when_its_trainers_have_whatever_lives_beside_them(world, key):
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        end_trainer(world, name, 0)

    world.settle()

    assert world.status(key)["state"] == "Succeeded"
    assert [stage["exitCode"] for stage in world.status(key)["stages"]] == [0, 0]


def test_what_outlives_its_trainer_may_end_by_itself_and_is_removed_ten_seconds_later(world, key):
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        end_trainer(world, name, 0)
    world.settle()
    assert names_of(world.cluster.all_pods()) == ["gpt-r0-s0", "gpt-r0-s1"]
    assert world.reconcile(key) == 10

    world.cluster.pass_time(10)
    world.settle()

    assert names_of(world.cluster.all_pods()) == []


def test_a_stage_that_ended_before_the_others_gives_its_gpu_back_and_is_not_missed(world, key):
    end_trainer(world, "gpt-r0-s0", 0)
    world.settle()
    world.cluster.pass_time(10)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    assert names_of(world.cluster.all_pods()) == ["gpt-r0-s1"]
    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 1)

    end_trainer(world, "gpt-r0-s1", 0)
    world.settle()

    assert world.status(key)["state"] == "Succeeded"


@pytest.mark.parametrize("clock", ["2025-12-31T00:00:00Z", "2027-01-01T00:00:00Z"])
def test_a_nodes_clock_that_is_wrong_holds_no_gpu(world, key, clock):
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        state = {"terminated": {"exitCode": 0, "finishedAt": clock}}
        set_containers(world, name, container("trainer", state), container("log-shipper", RUNNING))

    world.settle()

    assert world.status(key)["state"] == "Succeeded"
    assert names_of(world.cluster.all_pods()) == []


def test_a_trainer_out_of_memory_beside_a_living_container_restarts_the_gang_with_its_exit_code(world, key):
    end_trainer(world, "gpt-r0-s1", 137, reason="OOMKilled", message="step 7")

    world.settle()
    told = world.condition(key, "Ready")["message"]
    world.cluster.finish_deletions()
    world.train()

    assert "Stage 1 of replica 0 (pod gpt-r0-s1) failed with exit code 137: OOMKilled: step 7" in told
    assert (world.status(key)["attempt"], world.status(key)["restarts"]) == (2, 1)


def test_the_failure_policys_codes_are_the_trainers(world, key):
    end_trainer(world, "gpt-r0-s0", 1, others=(("log-shipper", ended(world, 42)),))
    world.settle()
    assert world.status(key)["state"] == "Restarting"
    world.cluster.finish_deletions()
    world.train()

    end_trainer(world, "gpt-r0-s0", 42)
    world.settle()

    assert world.status(key)["state"] == "Failed"


def test_last_words_of_a_trainer_are_read_beside_a_living_container(world, key):
    words = Termination(exit_code=64, reason="DataNotFound", message="no file matches /data/*.txt", step=0)
    end_trainer(world, "gpt-r0-s0", 64, message=words.model_dump_json(by_alias=True))

    world.settle()

    assert world.condition(key, "Succeeded")["reason"] == "DataNotFound"


@pytest.mark.parametrize(("code", "said"), [(0, ""), (1, "container log-shipper ended with exit code 1 (Error)")])
def test_the_end_of_what_stands_beside_is_not_the_stages(world, key, code, said):
    statuses = (container("log-shipper", ended(world, code)), container("trainer", RUNNING))
    set_containers(world, "gpt-r0-s1", *statuses, ready=False)

    world.settle()

    assert (world.status(key)["state"], world.status(key)["stagesReady"]) == ("Training", "2/2")
    assert said in world.condition(key, "Ready")["message"]
    assert said in world.status(key)["stages"][1].get("message", "")


def test_a_pod_that_failed_by_a_container_beside_a_trainer_that_completed_is_a_success(world, key):
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        statuses = (container("trainer", ended(world, 0)), container("log-shipper", ended(world, 2)))
        set_containers(world, name, *statuses, phase="Failed")

    world.settle()

    assert world.status(key)["state"] == "Succeeded"
    assert names_of(world.cluster.all_pods()) == ["gpt-r0-s0", "gpt-r0-s1"]


def test_a_pod_stays_pending_in_name_while_its_trainer_trains_beside_an_image_that_cant_be_pulled(world, key):
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such host"}}
    statuses = (container("trainer", RUNNING), container("log-shipper", waiting))
    set_containers(world, "gpt-r0-s1", *statuses, phase="Pending")
    world.settle()
    world.cluster.pass_time(3600)

    world.settle()

    assert world.status(key)["state"] == "Training"
    assert "log-shipper can't start: ImagePullBackOff" in world.condition(key, "Ready")["message"]


@pytest.mark.parametrize(
    "more", [{"restartCount": 1}, {"restartCount": 1, "lastState": {"terminated": {"exitCode": 9, "reason": "Error"}}}]
)
def test_a_trainer_that_was_started_again_in_its_place_has_ended(world, key, more):
    set_containers(world, "gpt-r0-s1", container("trainer", RUNNING, **more), ready=True)

    world.settle()

    assert (world.status(key)["state"], world.status(key)["restarts"]) == ("Restarting", 1)


def test_ephemeral_containers_count_for_nothing(world, key):
    shell = container("debugger", ended(world, 3))
    set_containers(world, "gpt-r0-s1", container("trainer", RUNNING), ready=True, ephemeralContainerStatuses=[shell])

    world.settle()

    assert world.status(key)["state"] == "Training"
    assert world.condition(key, "Ready")["message"] == "all 2 stages are up"


PREPARED = {
    "spec": {
        "initContainers": [
            {"name": "mesh", "image": "proxy:1", "restartPolicy": "Always"},
            {"name": "fetch", "image": "fetch:1"},
        ]
    }
}


@pytest.fixture
def prepared(world):
    key = world.submit(job(template=PREPARED, failurePolicy={"maxRestarts": 0, "rules": RULES}))
    world.settle()
    world.cluster.bind()
    return key


def test_an_init_container_that_fails_is_named_and_its_code_means_nothing_to_the_rules(world, prepared):
    statuses = [
        container("mesh", RUNNING, started=True),
        container("fetch", ended(world, 42, message="404: no such data set")),
    ]
    waiting = container("trainer", {"waiting": {"reason": "PodInitializing"}})
    set_containers(world, "gpt-r0-s1", waiting, phase="Failed", initContainerStatuses=statuses)

    world.settle()

    succeeded = world.condition(prepared, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "RestartsExhausted")
    assert "failed: init container fetch ended with exit code 42: 404: no such data set" in succeeded["message"]
    assert "exitCode" not in world.status(prepared)["stages"][1]


def test_a_native_sidecar_that_crashes_before_the_trainer_begins_is_named_and_ends_nothing_yet(world, prepared):
    crashed = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    mesh = container("mesh", crashed, lastState=ended(world, 1), restartCount=3)
    waiting = container("trainer", {"waiting": {"reason": "PodInitializing"}})
    set_containers(world, "gpt-r0-s1", waiting, phase="Pending", initContainerStatuses=[mesh])

    world.settle()

    assert world.status(prepared)["state"] == "Starting"
    stalled = world.condition(prepared, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "CrashLoopBackOff")
    assert "init container mesh: back-off 10s" in stalled["message"]


def test_a_native_sidecar_that_crashes_beside_a_running_trainer_ends_nothing(world, prepared):
    world.cluster.start()
    mesh = container("mesh", RUNNING, lastState=ended(world, 139), restartCount=1, started=True)
    set_containers(world, "gpt-r0-s1", container("trainer", RUNNING), ready=True, initContainerStatuses=[mesh])

    world.settle()

    assert (world.status(prepared)["state"], world.status(prepared)["restarts"]) == ("Training", 0)
    assert "container mesh ended with exit code 139" in world.condition(prepared, "Ready")["message"]


@pytest.mark.parametrize(("reason", "restarts"), [("Error", 0), ("OOMKilled", 1)])
def test_a_trainer_that_is_killed_when_its_grace_is_over_was_taken_away(world, key, reason, restarts):
    world.cluster.remove(world.cluster.pod("gpt-r0-s1"))
    end_trainer(world, "gpt-r0-s1", 137, reason=reason)

    world.settle()

    assert (world.status(key)["restarts"], world.status(key)["disruptions"]) == (restarts, 1 - restarts)


def test_an_eviction_is_told_by_the_pod_while_another_container_still_ends(world, key):
    statuses = (container("trainer", ended(world, 137)), container("log-shipper", RUNNING))
    set_containers(world, "gpt-r0-s1", *statuses, reason="Evicted", message="")

    world.settle()

    assert (world.status(key)["restarts"], world.status(key)["disruptions"]) == (0, 1)
