"""A job with a queue holds nodes only while Kueue admits it, and pays Kueue what a job controller owes.

The cluster is of dictionaries and Kueue is played; `tests/cluster/admission/test_kueue.py` asks
the real manager.
"""

import pytest

from pipelinejob_operator.cluster import Reference
from pipelinejob_operator.controller.observing.observe import read_admitted
from pipelinejob_operator.objects.job import read_job
from support.clusters.operatorworld import Mortal, World
from support.clusters.played_kueue import Kueue, queued, train
from support.manifests.jobs import job, nodes


@pytest.fixture
def world():
    return World(nodes(2))


@pytest.fixture
def kueue(world):
    return Kueue(world)


def test_without_kueue_a_job_with_a_queue_waits_and_says_what_to_do(world):
    key = world.submit(queued())

    world.settle()

    admitted = world.condition(key, "Admitted")
    assert (admitted["status"], admitted["reason"]) == ("False", "NoKueue")
    assert "kueue.enabled" in admitted["message"]
    assert world.cluster.all_pods() == []


def test_without_the_label_kueue_is_not_asked(world, kueue):
    key = world.submit(job())

    world.train()

    assert world.status(key)["state"] == "Training"
    assert world.cluster._all("Workload") == []


def test_a_job_without_quota_is_not_placed_and_repeats_kueues_own_words(world, kueue):
    key = world.submit(queued())
    world.settle()
    kueue.say([("QuotaReserved", "False", "Inadmissible", "LocalQueue team-a doesn't exist")])

    world.settle()

    admitted = world.condition(key, "Admitted")
    assert (admitted["status"], admitted["reason"]) == ("False", "QuotaPending")
    assert admitted["message"] == "waits for quota in queue team-a: not reserved: LocalQueue team-a doesn't exist"
    assert world.cluster.all_pods() == []


def test_a_job_that_waits_for_quota_keeps_no_younger_one_from_room(world, kueue):
    world.submit(queued("first"))
    world.settle()
    world.cluster.pass_time(1)
    second = world.submit(job("second"))

    world.train()

    assert world.status(second)["state"] == "Training"


def test_reserved_quota_is_not_enough_while_admission_checks_go_on(world, kueue):
    key = world.submit(queued())
    world.settle()
    kueue.say([("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "False", "Unsatisfied", "check x pending")])

    world.settle()

    assert "admission checks are under way: check x pending" in world.condition(key, "Admitted")["message"]


def test_an_admitted_job_is_placed_on_nodes_of_its_flavor_only():
    blue = [{"key": "team", "value": "blue", "effect": "NoSchedule"}]
    world = World([*nodes(2), *nodes(4, labels={"pool": "blue"})[2:]])
    for name in ("n2", "n3"):
        item = world.cluster.objects["Node", "", name]
        world.cluster._put(item | {"spec": {"taints": blue}})
    kueue = Kueue(world)
    tolerations = [{"key": "team", "operator": "Equal", "value": "blue", "effect": "NoSchedule"}]
    kueue.flavor("blue", nodeLabels={"pool": "blue"}, tolerations=tolerations)
    key = world.submit(queued())
    world.settle()
    kueue.admit("blue")

    world.train(key)

    assert {each["node"] for each in world.status(key)["stages"]} == {"n2", "n3"}
    spec = world.cluster.pod("gpt-r0-s0")["spec"]
    assert spec["nodeSelector"] == {"pool": "blue"}
    assert tolerations[0] in spec["tolerations"]


def test_the_plan_is_made_for_the_devices_of_the_flavor():
    products = {"slow": "NVIDIA-A100-SXM4-80GB", "fast": "NVIDIA-H100-80GB-HBM3"}
    labels = {pool: {"pool": pool, "nvidia.com/gpu.product": product} for pool, product in products.items()}
    world = World([*nodes(2, labels=labels["slow"]), *nodes(6, labels=labels["fast"])[2:]])
    kueue = Kueue(world)
    kueue.flavor("slow", nodeLabels={"pool": "slow"})
    key = world.submit(queued())
    world.settle()
    kueue.admit("slow")
    draft = world.controller._draft(
        read_admitted(world.cluster, read_job(world.cluster.job(key)), (), world.settings)[0]
    )

    world.train(key)

    assert {stage.device for stage in draft.plan.stages} == {"A100-SXM-80GB"}
    assert {each["node"] for each in world.status(key)["stages"]} == {"n0", "n1"}


def test_what_an_admission_check_adds_reaches_the_pods(world, kueue):
    world.submit(queued())
    world.settle()
    update = {"name": "like-stage-0", "annotations": {"provisioned": "yes"}, "labels": {"check": "done"}}
    kueue.say([], admissionChecks=[{"name": "p", "state": "Ready", "podSetUpdates": [update]}])
    kueue.admit()

    world.settle()

    metadata = world.cluster.pod("gpt-r0-s1")["metadata"]
    assert metadata["annotations"]["provisioned"] == "yes"
    assert metadata["labels"]["check"] == "done"


def test_an_evicted_job_gives_everything_back_before_its_quota_and_returns_by_itself(world, kueue):
    key = world.submit(queued())
    train(world, kueue, key)
    kueue.evict()

    world.settle()
    assert all("deletionTimestamp" in pod["metadata"] for pod in world.cluster.all_pods())
    assert kueue.conditions()["QuotaReserved"][0] == "True", "pods still hold what the quota is for"
    assert "Preempted to accommodate a workload" in world.condition(key, "Admitted")["message"]

    world.cluster.finish_deletions()
    world.settle()
    assert kueue.conditions()["QuotaReserved"] == ("False", "Pending")
    assert kueue.conditions()["Admitted"] == ("False", "NoReservation")
    assert kueue.conditions()["Requeued"] == ("True", "Preempted")
    assert "admission" not in kueue.workload["status"]
    assert "startTime" not in world.status(key), "the active deadline counts anew"

    kueue.admit()
    world.train(key)
    status = world.status(key)
    assert (status["state"], status["attempt"], status.get("restarts", 0)) == ("Training", 2, 0)


def test_the_checkpoint_of_an_evicted_gang_is_told(world, kueue):
    key = world.submit(queued())
    train(world, kueue, key)
    kueue.evict()
    world.settle()
    words = '{"exitCode": 143, "reason": "Stopped", "message": "saved", "step": 41}'
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Failed", code=143, message=words)

    world.settle()

    assert world.status(key)["lastCheckpointStep"] == 41


def test_a_deactivated_job_waits_until_somebody_activates_it(world, kueue):
    key = world.submit(queued())
    train(world, kueue, key)
    item = kueue.workload
    world.cluster._put(item | {"spec": item["spec"] | {"active": False}})
    kueue.evict("Deactivated", "The workload is deactivated")
    world.settle()
    world.cluster.finish_deletions()

    world.settle()

    assert kueue.conditions()["Requeued"] == ("False", "Deactivated")
    assert "set spec.active: true there to queue it again" in world.condition(key, "Admitted")["message"]


def test_a_workload_that_somebody_deletes_stops_the_job_and_is_asked_for_anew(world, kueue):
    key = world.submit(queued())
    train(world, kueue, key)
    before = kueue.workload["metadata"]["uid"]
    world.cluster.remove(kueue.workload)
    world.settle()
    assert "its Workload was deleted" in world.condition(key, "Placed")["message"]

    world.cluster.finish_deletions()
    world.settle()

    assert kueue.workload["metadata"]["uid"] != before
    assert world.condition(key, "Admitted")["reason"] == "QuotaPending"


def test_kueue_is_told_when_all_stages_are_up_and_when_they_are_not(world, kueue):
    key = world.submit(queued())
    world.settle()
    kueue.admit()
    world.settle()
    assert kueue.conditions()["PodsReady"] == ("False", "WaitForStart")

    world.train(key)
    assert kueue.conditions()["PodsReady"] == ("True", "Started")

    world.cluster.set_pod(world.cluster.pod("gpt-r0-s1"), phase="Failed", code=1)
    world.settle()
    assert kueue.conditions()["PodsReady"] == ("False", "WaitForRecovery")
    world.cluster.finish_deletions()
    world.train(key)
    assert kueue.conditions()["PodsReady"] == ("True", "Recovered")


@pytest.mark.parametrize(("code", "reason"), [(0, "Succeeded"), (64, "Failed")])
def test_an_ended_job_frees_its_quota_once_nothing_of_it_runs(world, kueue, code, reason):
    key = world.submit(queued())
    train(world, kueue, key)
    stages = ["gpt-r0-s0", "gpt-r0-s1"] if code == 0 else ["gpt-r0-s1"]
    for name in stages:
        phase = "Succeeded" if code == 0 else "Failed"
        world.cluster.set_pod(world.cluster.pod(name), phase=phase, code=code)
    world.settle()
    if code:
        assert "Finished" not in kueue.conditions(), "another stage still stops"
        world.cluster.finish_deletions()
        world.settle()

    assert kueue.conditions()["Finished"] == ("True", reason)


def test_a_suspended_job_asks_for_nothing_and_asks_again_when_resumed(world, kueue):
    key = world.submit(queued())
    train(world, kueue, key)
    world.cluster.edit(key, suspend=True)
    world.settle()
    assert kueue.workload, "the stages still stop"
    world.cluster.finish_deletions()

    world.settle()
    assert world.cluster._all("Workload") == []

    world.cluster.edit(key, suspend=False)
    world.settle()
    assert world.condition(key, "Admitted")["reason"] == "QuotaPending"
    assert kueue.workload


def test_a_job_whose_label_is_taken_off_gives_its_quota_back(world, kueue):
    key = world.submit(queued())
    world.settle()
    item = world.cluster.job(key)
    world.cluster._put(item | {"metadata": item["metadata"] | {"labels": {}}})

    world.train()

    assert world.status(key)["state"] == "Training"
    assert world.cluster._all("Workload") == []


def test_a_job_runs_on_though_kueue_is_uninstalled(world, kueue):
    key = world.submit(queued())
    train(world, kueue, key)
    world.cluster.kueue_version = None

    world.settle()

    assert world.status(key)["state"] == "Training"


def test_a_deleted_jobs_workload_is_left_to_its_owner_reference(world, kueue):
    key = world.submit(queued())
    world.settle()
    workload = kueue.workload

    world.cluster.remove(world.cluster.job(key))

    assert workload["metadata"]["ownerReferences"][0]["blockOwnerDeletion"]
    assert Reference not in {type(item) for verb, item in world.cluster.writes if verb == "delete"}


@pytest.mark.parametrize("verb", ["refuse", "lose_answer"])
@pytest.mark.parametrize("deadly", range(1, 24))
def test_a_controller_that_dies_after_any_write_gives_quota_back_only_when_nothing_runs(deadly, verb):
    world = Mortal(nodes(2), deadly=deadly, verb=verb)
    kueue = Kueue(world)
    key = world.submit(queued())
    train(world, kueue, key)
    kueue.evict()
    world.settle()
    assert kueue.conditions()["QuotaReserved"][0] == "True", "stages still stop"
    world.cluster.finish_deletions()
    world.settle()
    assert kueue.conditions()["QuotaReserved"] == ("False", "Pending")

    kueue.admit()
    world.train(key)

    assert (world.status(key)["state"], world.status(key)["attempt"]) == ("Training", 2)
    for name in ("gpt-r0-s0", "gpt-r0-s1"):
        world.cluster.set_pod(world.cluster.pod(name), phase="Succeeded", code=0)
    world.settle()
    assert kueue.conditions()["Finished"] == ("True", "Succeeded")
