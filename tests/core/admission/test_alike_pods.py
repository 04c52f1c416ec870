"""One dry run tells what admission makes of all pods that are alike, for some seconds; nothing wrong comes of it."""

import pytest

from pipelinejob.base import names
from pipelinejob_operator.admission.pods.alike import KEEP_S
from pipelinejob_operator.cluster import ForbiddenError
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node


@pytest.fixture
def world():
    """Two pools of nodes; what admission was asked about is in `asked`, by the names of jobs."""
    found = World([node("n0", gpus=8, labels={"pool": "a"}), node("n1", gpus=8, labels={"pool": "b"})])
    found.asked, admitted = [], found.cluster.admitted

    async def count(pod):
        found.asked.append(pod["metadata"]["labels"][names.LABEL_JOB])
        return await admitted(pod)

    found.cluster.admitted = count
    return found


def selecting(pool):
    def change(pod):
        pod["spec"]["nodeSelector"] = {"pool": pool}
        return pod

    return change


def nodes_of(world, key):
    return {stage.get("node") for stage in world.status(key)["stages"]}


def test_jobs_of_one_template_cost_one_dry_run_and_each_is_placed_by_what_it_told(world):
    world.cluster.mutate = selecting("b")
    keys = [world.submit(job(f"j{number}")) for number in range(4)]

    world.train()

    assert len(world.asked) == 1
    assert [world.status(key)["state"] for key in keys] == ["Training"] * 4
    assert all(nodes_of(world, key) == {"n1"} for key in keys)
    labels = {pod["metadata"]["labels"][names.LABEL_JOB] for pod in world.cluster.all_pods()}
    assert labels == {"j0", "j1", "j2", "j3"}


@pytest.mark.parametrize(
    "other",
    [
        job("other", template={"metadata": {"labels": {"team": "b"}}}),
        job("other", template={"spec": {"nodeSelector": {"pool": "a"}}}),
        job("other", template={"spec": {"serviceAccountName": "b"}}),
        job("other", namespace="elsewhere"),
        job("other", training={"steps": 7}, scheduling={"priorityClassName": "high"}),
    ],
    ids=["labels", "selector", "account", "namespace", "priority"],
)
def test_a_pod_that_differs_is_asked_about(world, other):
    world.cluster._put({"kind": "PriorityClass", "metadata": {"name": "high"}, "value": 10})
    world.submit(job())
    world.settle()
    world.submit(other)
    world.settle()

    assert sorted(world.asked) == ["gpt", "other"]


def test_what_is_no_part_of_the_pod_makes_no_difference(world):
    world.submit(job())
    world.submit(job("other", training={"steps": 7}))
    world.settle()

    assert len(world.asked) == 1


def test_an_answer_is_good_for_some_seconds(world):
    world.submit(job())
    world.settle()
    world.cluster.pass_time(KEEP_S)
    world.submit(job("later"))
    world.settle()

    assert world.asked == ["gpt", "later"]


def test_an_answer_that_names_the_job_is_nobody_elses(world):
    def beside_itself(pod):
        labels = {names.LABEL_JOB: pod["metadata"]["labels"][names.LABEL_JOB]}
        term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "pool"}
        pod["spec"]["affinity"] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        return pod

    world.cluster.mutate = beside_itself
    for name in ("one", "two"):
        world.submit(job(name))
    world.settle()

    assert sorted(world.asked) == ["one", "two"]


def test_where_a_webhook_takes_no_part_in_dry_runs_no_answer_is_shared(world):
    world.cluster.tells_admission = False
    for name in ("one", "two"):
        world.submit(job(name))
    world.settle()

    assert sorted(world.asked) == ["one", "two"]


def test_claims_are_looked_at_each_time(world):
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "default"}, "spec": {}}
    world.cluster.create(claim)
    for name in ("one", "two"):
        world.submit(job(name, checkpoint={"volume": {"claimName": "c"}}))
    world.settle()

    assert sorted(world.asked) == ["one", "two"]


def test_where_admission_changes_at_once_the_pods_show_it_and_it_is_asked_anew(world):
    world.submit(job())
    world.settle()
    world.cluster.mutate = selecting("b")
    misled = world.submit(job("misled"))
    world.settle()
    assert world.condition(misled, "Placed")["reason"] == "NoLongerFits"
    assert world.asked == ["gpt"]

    warned = world.submit(job("warned"))
    world.train()
    assert world.asked == ["gpt", "warned"]
    assert (world.status(warned)["state"], nodes_of(world, warned)) == ("Training", {"n1"})

    world.cluster.pass_time(10)
    world.train()
    assert (world.status(misled)["state"], nodes_of(world, misled)) == ("Training", {"n1"})


def test_after_a_refusal_nobody_goes_by_what_was_told_before(world):
    world.submit(job())
    world.settle()
    world.cluster.refuse = lambda verb, item: (
        ForbiddenError("exceeded quota") if verb == "apply" and item["kind"] == "Pod" else None
    )
    refused = world.submit(job("refused"))
    world.settle()
    assert world.condition(refused, "Placed")["reason"] == "Refused"
    assert world.asked == ["gpt"]

    world.submit(job("next"))
    world.settle()

    assert world.asked[:2] == ["gpt", "next"]
