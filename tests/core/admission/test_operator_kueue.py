"""A job with a queue holds nodes only while Kueue admits it, and pays Kueue what a job controller owes.

The cluster is of dictionaries and Kueue is played; `tests/cluster/admission/test_kueue.py` asks the real manager.
"""

import pytest

from pipelinejob_operator.cluster import InvalidError, Reference
from pipelinejob_operator.controller.observing.observe import read_admitted
from pipelinejob_operator.objects.job import read_job
from support.clusters.operatorworld import Mortal, World
from support.manifests.jobs import job, nodes

NOW = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
QUEUE = {"kueue.x-k8s.io/queue-name": "team-a"}


def queued(name="gpt", labels=None, **spec):
    manifest = job(name, **spec)
    return manifest | {"metadata": manifest["metadata"] | {"labels": QUEUE | (labels or {})}}


class Kueue:
    """Kueue's manager, as far as a job sees it."""

    def __init__(self, world):
        self.cluster = world.cluster
        self.cluster.kueue_version = "kueue.x-k8s.io/v1beta2"

    @property
    def workload(self):
        (found,) = self.cluster._all("Workload")
        return found

    def conditions(self):
        return {each["type"]: (each["status"], each["reason"]) for each in self.workload["status"]["conditions"]}

    def flavor(self, name, **spec):
        self.cluster._put({"kind": "ResourceFlavor", "metadata": {"name": name}, "spec": spec})

    def say(self, conditions, **status):
        """Set conditions, each as (type, status, reason, message)."""
        item = self.workload
        kept = {each["type"]: each for each in item.get("status", {}).get("conditions", ())}
        for kind, holds, reason, message in conditions:
            kept[kind] = {"type": kind, "status": holds, "reason": reason, "message": message} | NOW
        self.cluster._put(item | {"status": item.get("status", {}) | status | {"conditions": list(kept.values())}})

    def admit(self, flavor="default"):
        assignments = [
            {"name": each["name"], "count": each["count"], "flavors": {"nvidia.com/gpu": flavor}}
            for each in self.workload["spec"]["podSets"]
        ]
        words = ("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", "")
        self.say(
            [*words, ("Evicted", "False", "QuotaReserved", "")],
            admission={"clusterQueue": "q", "podSetAssignments": assignments},
        )

    def evict(self, reason="Preempted", message="Preempted to accommodate a workload"):
        self.say([("Evicted", "True", reason, message)])


@pytest.fixture
def world():
    return World(nodes(2))


@pytest.fixture
def kueue(world):
    return Kueue(world)


def train(world, kueue, key):
    world.settle()
    kueue.admit()
    world.train(key)
    assert world.status(key)["state"] == "Training"


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


def test_the_workload_asks_for_what_the_pods_will_take(world, kueue):
    world.submit(queued(parallelism={"pipeline": 2, "data": 3}))

    world.settle()

    spec = kueue.workload["spec"]
    assert (spec["queueName"], spec["priority"]) == ("team-a", 0)
    (pod_set,) = spec["podSets"]
    assert (pod_set["name"], pod_set["count"]) == ("like-stage-0", 6)
    requests = pod_set["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert requests == {"cpu": "1", "memory": "4Gi", "nvidia.com/gpu": "1"}
    assert kueue.workload["metadata"]["ownerReferences"][0]["kind"] == "PipelineJob"


def test_stages_that_ask_alike_are_one_pod_set_and_others_are_theirs(world, kueue):
    big = {"spec": {"nodeSelector": {"gpu": "big"}}}
    world.submit(
        queued(
            parallelism={"pipeline": 4},
            stageTemplates=[{"stage": 0, "template": big}, {"stage": 3, "template": big}],
        )
    )

    world.settle()

    sets = {each["name"]: each["count"] for each in kueue.workload["spec"]["podSets"]}
    assert sets == {"like-stage-0": 2, "like-stage-1": 2}


def test_more_kinds_of_stages_than_kueue_takes_are_refused_in_a_sentence(world, kueue):
    key = world.submit(
        queued(
            model={"gpt": {"numLayers": 32, "hiddenSize": 64, "numHeads": 4}},
            parallelism={"pipeline": 19},
            schedule={"microBatches": 19},
            stageTemplates=[{"stage": s, "template": {"spec": {"nodeSelector": {"n": str(s)}}}} for s in range(19)],
        )
    )

    world.settle()

    admitted = world.condition(key, "Admitted")
    assert admitted["reason"] == "TooManyShapes"
    assert "at most 18 kinds of pods and this job's stages are of 19" in admitted["message"]
    assert world.condition(key, "Stalled")["status"] == "True"
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


def test_a_job_that_comes_to_ask_for_more_asks_anew(world, kueue):
    key = world.submit(queued())
    world.settle()
    template = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "9"}}}]}}
    world.cluster.edit(key, template=template)

    world.settle()

    assert (
        kueue.workload["spec"]["podSets"][0]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "9"
    )


def test_an_admission_of_what_was_asked_before_is_not_used(world, kueue):
    key = world.submit(queued())
    world.settle()
    kueue.admit()
    world.cluster.edit(key, template={"spec": {"nodeSelector": {"gpu": "big"}}})

    world.settle()

    assert world.condition(key, "Admitted")["reason"] == "QuotaPending"
    assert world.cluster.all_pods() == []


def test_a_running_job_keeps_its_quota_though_its_template_changed(world, kueue):
    key = world.submit(queued())
    train(world, kueue, key)
    before = kueue.workload["metadata"]["uid"]
    world.cluster.edit(key, template={"spec": {"nodeSelector": {"gpu": "big"}}})

    world.settle()

    assert world.status(key)["state"] == "Training"
    assert kueue.workload["metadata"]["uid"] == before


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


def test_a_workload_that_a_policy_refuses_is_told_and_tried_again(world, kueue):
    key = world.submit(queued())
    world.cluster.refuse = lambda verb, item: (
        InvalidError("no such queue allowed") if verb == "apply" and item["kind"] == "Workload" else None
    )
    for _ in range(3):
        world.reconcile(key)

    assert world.condition(key, "Placed")["reason"] == "Refused"
    assert "no such queue allowed" in world.condition(key, "Placed")["message"]
    assert world.told().count("Waiting") <= 2

    world.cluster.refuse = lambda verb, item: None
    world.settle()
    assert kueue.workload


def test_the_priority_is_that_of_the_workloads_own_class(world, kueue):
    world.cluster._put({"kind": "WorkloadPriorityClass", "metadata": {"name": "high"}, "value": 1000})
    world.submit(queued(labels={"kueue.x-k8s.io/priority-class": "high"}))

    world.settle()

    assert kueue.workload["spec"]["priority"] == 1000
    assert kueue.workload["spec"]["priorityClassRef"] == {
        "group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": "high",
    }  # fmt: skip


def test_an_older_kueue_is_spoken_to_in_its_own_version(world, kueue):
    kueue.cluster.kueue_version = "kueue.x-k8s.io/v1beta1"
    world.cluster._put({"kind": "WorkloadPriorityClass", "metadata": {"name": "high"}, "value": 1000})
    world.submit(queued(labels={"kueue.x-k8s.io/priority-class": "high"}))

    world.settle()

    assert kueue.workload["apiVersion"] == "kueue.x-k8s.io/v1beta1"
    spec = {key: value for key, value in kueue.workload["spec"].items() if key.startswith("priority")}
    assert spec == {
        "priority": 1000,
        "priorityClassName": "high",
        "priorityClassSource": "kueue.x-k8s.io/workloadpriorityclass",
    }


def test_the_priority_is_that_of_the_pods_class_where_kueues_own_is_not_named(world, kueue):
    world.cluster._put({"kind": "PriorityClass", "metadata": {"name": "urgent"}, "value": 7})
    world.submit(queued(scheduling={"priorityClassName": "urgent"}))

    world.settle()

    assert kueue.workload["spec"]["priority"] == 7
    assert kueue.workload["spec"]["priorityClassRef"]["kind"] == "PriorityClass"


def test_a_priority_class_that_does_not_exist_is_named(world, kueue):
    key = world.submit(queued(labels={"kueue.x-k8s.io/priority-class": "high"}))

    world.settle()

    assert world.condition(key, "Admitted")["reason"] == "NoPriorityClass"
    assert "WorkloadPriorityClass high" in world.condition(key, "Admitted")["message"]


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
