"""A job's life over a fake cluster: from its manifest to its end, and what is written on the way."""

import json
from dataclasses import replace

import pytest

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Termination
from pipelinejob_operator.cluster import ConflictError, ForbiddenError, InvalidError
from support.clusters.operatorworld import SETTINGS, World
from support.manifests.jobs import job, node, nodes


@pytest.fixture
def world():
    return World(nodes(2))


def test_a_job_goes_from_manifest_to_success(world):
    key = world.submit(job())
    world.settle()
    assert world.status(key)["state"] == "Starting"
    world.train()
    assert world.status(key)["state"] == "Training"
    assert world.condition(key, "Ready")["status"] == "True"

    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.settle()

    status = world.status(key)
    assert status["state"] == "Succeeded"
    assert world.condition(key, "Succeeded")["status"] == "True"
    assert (status["step"], status["steps"], status["progress"]) == (100, 100, "100%")
    assert status["completionTime"] == "2026-01-01T00:00:00Z"
    assert world.told() == ["Placed", "StagesReady", "Succeeded"]


def test_a_second_reconcile_changes_nothing(world):
    key = world.submit(job())
    world.train()
    before = len(world.cluster.writes)

    world.reconcile(key)

    assert len(world.cluster.writes) == before


def test_a_controller_that_remembers_nothing_changes_nothing(world):
    world.submit(job())
    world.train()
    before = len(world.cluster.writes)

    world.restart()
    world.settle()

    assert len(world.cluster.writes) == before


def test_the_attempt_is_stored_before_any_of_its_pods_exists(world):
    key = world.submit(job())
    world.reconcile(key)

    verbs = [(verb, item.get("kind") if verb == "apply" else None) for verb, item in world.cluster.writes]

    assert verbs == [
        ("status", None),
        ("apply", "ConfigMap"),
        ("apply", "Service"),
        ("apply", "Pod"),
        ("apply", "Pod"),
    ]
    assert world.status(key)["attempt"] == 1


def test_pods_are_gated_until_the_gang_is_whole(world):
    key = world.submit(job())
    world.cluster.refuse = lambda verb, item: (
        ConflictError("busy") if verb == "apply" and item["metadata"]["name"] == "gpt-r0-s1" else None
    )
    with pytest.raises(ConflictError):
        world.reconcile(key)
    with pytest.raises(ConflictError):
        world.reconcile(key)
    assert world.cluster.pod("gpt-r0-s0")["spec"]["schedulingGates"] == [{"name": names.GATE_GANG}]

    world.cluster.refuse = lambda verb, item: None
    world.settle()

    assert all("schedulingGates" not in pod["spec"] for pod in world.cluster.all_pods())


def test_the_plan_in_the_config_map_names_the_nodes(world):
    world.submit(job())
    world.settle()

    plan = Plan.from_json(world.cluster.objects["ConfigMap", "default", "gpt-plan"]["data"]["plan.json"])

    assert plan.placement is not None
    assert sorted(each.node for each in plan.placement.assignments) == ["n0", "n1"]


def test_all_conditions_stand_in_the_first_status(world):
    key = world.submit(job())
    world.reconcile(key)

    conditions = {each["type"]: each for each in world.status(key)["conditions"]}

    assert set(conditions) == {"Succeeded", "Admitted", "Placed", "Ready", "Suspended", "Degraded", "Stalled"}
    assert all(each["observedGeneration"] == 1 for each in conditions.values())
    assert world.status(key)["observedGeneration"] == 1


def test_an_invalid_stored_spec_creates_nothing_and_says_why(world):
    key = world.submit(job(parallelism={"pipeline": 100}))

    world.settle()

    assert world.condition(key, "Succeeded")["reason"] == "InvalidSpec"
    assert world.condition(key, "Stalled")["status"] == "True"
    assert "pipeline" in world.condition(key, "Succeeded")["message"]
    assert world.cluster.all_pods() == []


def test_a_deadline_ends_a_job_and_frees_its_nodes(world):
    key = world.submit(job(activeDeadlineSeconds=100))
    world.train()
    assert world.reconcile(key) == 10
    world.cluster.pass_time(95)
    assert world.reconcile(key) == 5

    world.cluster.pass_time(5)
    world.settle()
    world.cluster.finish_deletions()

    assert world.condition(key, "Succeeded")["reason"] == "DeadlineExceeded"
    assert world.cluster.all_pods() == []


def test_a_finished_job_is_deleted_after_its_ttl_and_not_before(world):
    key = world.submit(job(ttlSecondsAfterFinished=60))
    world.train()
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Succeeded", code=0)
    world.settle()
    world.cluster.pass_time(59)
    assert world.reconcile(key) == 1

    world.cluster.pass_time(1)
    world.settle()

    assert world.cluster.job(key) is None
    assert world.cluster.all_pods() == []


def test_suspending_lets_stages_checkpoint_and_releases_everything(world):
    key = world.submit(job())
    world.train()
    world.cluster.edit(key, suspend=True)
    world.settle()
    assert all("deletionTimestamp" in pod["metadata"] for pod in world.cluster.all_pods())
    assert (world.status(key)["state"], world.condition(key, "Suspended")["status"]) == ("Suspending", "False")

    world.cluster.finish_deletions()
    world.settle()

    assert (world.status(key)["state"], world.condition(key, "Suspended")["status"]) == ("Suspended", "True")
    assert world.cluster.all_pods() == []


def test_the_checkpoint_made_on_the_way_out_is_reported(world):
    key = world.submit(job())
    world.train()
    world.cluster.edit(key, suspend=True)
    world.settle()
    words = Termination(exit_code=143, reason="Stopped", message="a checkpoint was written", step=7)

    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Failed", code=143, message=words.model_dump_json(by_alias=True))
    world.settle()

    status = world.status(key)
    assert (status["state"], status["lastCheckpointStep"], status["step"]) == ("Suspended", 7, 7)


def test_resuming_is_a_new_attempt_and_no_restart(world):
    key = world.submit(job())
    world.train()
    world.cluster.edit(key, suspend=True)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()

    world.cluster.edit(key, suspend=False)
    world.train()

    status = world.status(key)
    assert (status["state"], status["attempt"], status["restarts"]) == ("Training", 2, 0)
    assert [reason for reason in world.told() if reason in {"Suspended", "Resumed"}] == ["Suspended", "Resumed"]


def test_a_resume_while_stages_still_stop_waits_for_them(world):
    key = world.submit(job())
    world.train()
    world.cluster.edit(key, suspend=True)
    world.settle()
    world.cluster.edit(key, suspend=False)
    world.settle()
    assert {pod["metadata"]["labels"][names.LABEL_ATTEMPT] for pod in world.cluster.all_pods()} == {"1"}

    world.cluster.finish_deletions()
    world.train()

    assert world.status(key)["state"] == "Training"
    assert {pod["metadata"]["labels"][names.LABEL_ATTEMPT] for pod in world.cluster.all_pods()} == {"2"}


def test_a_job_born_suspended_creates_nothing(world):
    key = world.submit(job(suspend=True))

    world.settle()

    assert world.status(key)["state"] == "Suspended"
    assert world.cluster.all_pods() == []


def test_a_quota_that_refuses_one_pod_takes_the_gang_back(world):
    key = world.submit(job())
    world.cluster.refuse = lambda verb, item: (
        ForbiddenError("exceeded quota: pods=1")
        if verb == "apply" and item["metadata"]["name"] == "gpt-r0-s1"
        else None
    )
    world.settle()
    assert world.cluster.all_pods() == []
    assert world.condition(key, "Placed")["reason"] == "Refused"
    assert "exceeded quota" in world.condition(key, "Placed")["message"]

    world.cluster.refuse = lambda verb, item: None
    world.cluster.pass_time(10)
    world.train()

    assert world.status(key)["state"] == "Training"


def test_a_pod_that_the_cluster_finds_invalid_ends_the_job(world):
    key = world.submit(job())
    world.cluster.refuse = lambda verb, item: (
        InvalidError("spec.containers[0].image: Required value")
        if verb == "apply" and item["metadata"]["name"] == "gpt-r0-s1"
        else None
    )

    world.settle()

    assert world.condition(key, "Succeeded")["reason"] == "InvalidTemplate"
    assert "Required value" in world.condition(key, "Succeeded")["message"]
    assert world.cluster.all_pods() == []


def test_a_lost_status_write_leaves_no_pod(world):
    key = world.submit(job())
    world.cluster.refuse = lambda verb, item: ConflictError("stale") if verb == "status" else None

    with pytest.raises(ConflictError):
        world.reconcile(key)

    assert "status" not in world.cluster.job(key)
    assert world.cluster.all_pods() == []


def test_pods_left_by_a_namesake_are_waited_for(world):
    world.submit(job())
    world.train()
    left = world.cluster.all_pods()
    world.cluster.objects.pop((names.KIND, "default", "gpt"))
    for pod in left:
        strange = pod | {"metadata": pod["metadata"] | {"labels": {}}}
        world.cluster.set_pod(strange, phase="Running")
    key = world.submit(job())
    world.settle()
    assert world.condition(key, "Placed")["reason"] == "NamesTaken"

    for pod in left:
        world.cluster.objects.pop(("Pod", "default", pod["metadata"]["name"]))
    world.settle()
    assert "Service gpt (of an earlier job of this name)" in world.condition(key, "Placed")["message"]

    for kind, name in (("ConfigMap", "gpt-plan"), ("Service", "gpt")):
        world.cluster.objects.pop((kind, "default", name))
    world.train()

    assert world.status(key)["state"] == "Training"


def test_a_status_is_small_and_pure_json(world):
    key = world.submit(job())
    world.train()

    assert len(json.dumps(world.status(key))) < 5000


def test_the_grace_period_of_settings_reaches_the_pod():
    world = World([node("n0", gpus=2)], settings=replace(SETTINGS, grace_s=7))
    world.submit(job())
    world.settle()

    pod = world.cluster.pod("gpt-r0-s0")

    assert pod["spec"]["terminationGracePeriodSeconds"] == 7
    assert {"name": names.ENV_GRACE_S, "value": "7"} in pod["spec"]["containers"][0]["env"]


@pytest.mark.parametrize("kind", ["ConfigMap", "Service"])
def test_what_somebody_deletes_by_hand_is_put_back(world, kind):
    key = world.submit(job())
    world.train()
    found = {name: item for name, item in world.cluster.objects.items() if name[0] == kind}
    (name,) = found
    before = len(world.cluster.writes)
    world.cluster.objects.pop(name)

    world.reconcile(key)

    assert world.cluster.objects[name].get("data") == found[name].get("data")
    assert len(world.cluster.writes) == before + 1


def test_a_new_attempts_plan_names_its_own_nodes():
    world = World(nodes(3))
    key = world.submit(job())
    world.train()
    gone = world.status(key)["stages"][1]["node"]
    world.cluster.objects.pop(("Node", "", gone))
    world.cluster.objects.pop(("Pod", "default", "gpt-r0-s1"))
    world.settle()
    world.cluster.finish_deletions()
    world.train()

    plan = Plan.from_json(world.cluster.objects["ConfigMap", "default", "gpt-plan"]["data"]["plan.json"])

    assert plan.placement is not None
    assert [each.node for each in plan.placement.assignments] == [s["node"] for s in world.status(key)["stages"]]


def test_a_pod_that_is_deleted_just_before_its_gang_is_let_go_is_not_made_anew(world):
    key = world.submit(job())
    world.reconcile(key)
    world.cache.freeze()
    world.cluster.objects.pop(("Pod", "default", "gpt-r0-s1"))

    with pytest.raises(ConflictError, match="gone"):
        world.reconcile(key)

    assert [pod["metadata"]["name"] for pod in world.cluster.all_pods()] == ["gpt-r0-s0"]
