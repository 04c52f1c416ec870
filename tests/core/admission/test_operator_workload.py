"""What a job asks Kueue for: its Workload, pod sets, priority and version."""

import pytest

from pipelinejob_operator.cluster import InvalidError
from support.clusters.operatorworld import World
from support.clusters.played_kueue import Kueue, queued, train
from support.manifests.jobs import nodes


@pytest.fixture
def world():
    return World(nodes(2))


@pytest.fixture
def kueue(world):
    return Kueue(world)


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
