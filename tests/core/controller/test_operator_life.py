"""A job's life over a fake cluster: from its manifest to its end, and what is written on the way."""

import json
from dataclasses import replace

import pytest

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Phase, Progress, Termination
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


def test_a_stage_that_was_planned_to_do_more_is_no_straggler():
    world = World(nodes(3))
    key = world.submit(job(parallelism={"pipeline": 3}, partition={"layers": [1, 6, 1]}))
    world.train()
    busy = [1 - float(stage["bubble"].rstrip("%")) / 100 for stage in world.status(key)["plan"]["stages"]]
    assert max(busy) > 1.3 * sorted(busy)[1]

    for step in range(1, 4):
        measure(world, *busy, step=step)

    assert world.condition(key, "Degraded")["reason"] == "AsExpected"


def test_a_pod_that_is_deleted_just_before_its_gang_is_let_go_is_not_made_anew(world):
    key = world.submit(job())
    world.reconcile(key)
    world.cache.freeze()
    world.cluster.objects.pop(("Pod", "default", "gpt-r0-s1"))

    with pytest.raises(ConflictError, match="gone"):
        world.reconcile(key)

    assert [pod["metadata"]["name"] for pod in world.cluster.all_pods()] == ["gpt-r0-s0"]
