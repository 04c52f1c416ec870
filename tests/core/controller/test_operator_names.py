"""A job waits for the names that it needs; what is another's is neither overwritten, nor adopted, nor deleted."""

import copy

import pytest

from pipelinejob_operator.cluster import NameTakenError
from pipelinejob_operator.objects.ownership import describe, obstacle
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node

SERVICE = {
    "kind": "Service",
    "metadata": {"name": "gpt", "namespace": "default"},
    "spec": {"clusterIP": "None", "selector": {"app": "my-db"}, "ports": [{"name": "db", "port": 5432}]},
}
CONFIG_MAP = {
    "kind": "ConfigMap",
    "metadata": {"name": "gpt-plan", "namespace": "default"},
    "data": {"notes.txt": "my own notes", "plan.json": "my own plan"},
}
POD = {
    "kind": "Pod",
    "metadata": {"name": "gpt-r0-s1", "namespace": "default"},
    "spec": {"containers": [{"name": "web", "resources": {}}]},
}


@pytest.fixture
def world():
    return World([node("n0", gpus=2)])


def stored(world, item):
    return world.cluster.objects[item["kind"], "default", item["metadata"]["name"]]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("item", [SERVICE, CONFIG_MAP], ids=["service", "config map"])
def test_what_is_anothers_is_left_as_it_is_and_the_job_says_what_it_waits_for(world, item, late):
    world.cluster.create(item)
    before = copy.deepcopy(stored(world, item))
    key = world.submit(job(scheduling={"binding": "Late"} if late else {}))
    world.settle()

    kind, name = item["kind"], item["metadata"]["name"]
    said = (
        f"{kind} {name} (of no owner): needed by this job under that name, and not its own; "
        "delete it, or give the job another name"
    )
    placed = world.condition(key, "Placed")
    assert (placed["reason"], placed["message"]) == ("NamesTaken", said)
    assert world.condition(key, "Stalled")["status"] == "True"
    assert world.status(key)["attempt"] == 0
    assert stored(world, item) == before
    assert world.cluster.all_pods() == []

    world.cluster.remove(world.cluster.job(key))
    world.reconcile(key)
    assert stored(world, item) == before


@pytest.mark.parametrize("item", [SERVICE, CONFIG_MAP, POD], ids=["service", "config map", "pod"])
def test_it_goes_on_when_the_names_are_free(world, item):
    world.cluster.create(item)
    key = world.submit(job())
    world.settle()
    assert world.condition(key, "Placed")["reason"] == "NamesTaken"
    assert world.status(key).get("attempt", 0) == 0

    world.cluster.objects.pop((item["kind"], "default", item["metadata"]["name"]))
    world.train()

    assert world.status(key)["state"] == "Training"


def test_a_job_whose_names_are_taken_keeps_no_other_from_its_room(world):
    world.cluster.create(SERVICE)
    world.submit(job())
    world.settle()
    other = world.submit(job("other"))

    world.train()

    assert world.status(other)["state"] == "Training"


@pytest.mark.parametrize("name", ["gpt", "gpt-plan", "gpt-r0-s1"])
def test_what_comes_between_the_look_and_the_write_is_noticed_and_nothing_is_held(world, name):
    key = world.submit(job())
    sentence = f"{name} is another's"
    world.cluster.refuse = lambda verb, item: (
        NameTakenError(sentence) if verb == "apply" and item["metadata"]["name"] == name else None
    )
    world.settle()

    placed = world.condition(key, "Placed")
    assert placed["reason"] == "NamesTaken"
    assert sentence in placed["message"]
    assert world.cluster.all_pods() == []

    world.cluster.refuse = lambda verb, item: None
    world.cluster.pass_time(60)
    world.train()
    assert world.status(key)["state"] == "Training"


def owned(**reference):
    return {**SERVICE, "metadata": {**SERVICE["metadata"], "ownerReferences": [reference]}}


@pytest.mark.parametrize(
    ("item", "said", "is_leaving"),
    [
        (SERVICE, "Service gpt (of no owner): needed", False),
        (
            owned(kind="Deployment", name="db", uid="d", controller=True),
            "Service gpt (of Deployment db): needed",
            False,
        ),
        (
            owned(kind="PipelineJob", name="gpt", uid="older", controller=True),
            "Service gpt (of an earlier job of this name): still being deleted; the job goes on when that is done",
            True,
        ),
        (owned(kind="PipelineJob", name="other", uid="o", controller=True), "(of PipelineJob other)", False),
        (owned(kind="PipelineJob", name="gpt", uid="u"), "Service gpt (of no owner)", False),
    ],
    ids=["nobody's", "a deployment's", "an earlier job's", "another job's", "owned, but not controlled"],
)
def test_an_owner_is_its_controller(item, said, is_leaving):
    found = obstacle(item, uid="u", name="gpt")

    assert found is not None
    assert found.is_leaving is is_leaving
    assert said in describe([found])


def test_what_the_job_controls_is_no_obstacle():
    assert obstacle(owned(kind="PipelineJob", name="gpt", uid="u", controller=True), uid="u", name="gpt") is None


def test_only_so_many_are_named():
    items = [{**SERVICE, "metadata": {"name": f"s{n}", "namespace": "default"}} for n in range(5)]
    found = [obstacle(item, uid="u", name="gpt") for item in items]

    assert describe(found).startswith("Service s0 (of no owner), Service s1 (of no owner), Service s2 (of no owner), 2")
