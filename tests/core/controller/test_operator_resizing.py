"""Another number of replicas while a job runs: planned and fitted first, then taken up from a checkpoint."""

import pytest

from pipelinejob.base import names
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node, nodes, priority_class

GLOBAL_BATCH = {"name": "1F1B", "globalBatchSize": 48, "microBatchSize": 1}


def shape(data):
    return {"pipeline": 2, "data": data}


def scaled(world, key, data):
    """Do what `kubectl scale --replicas` does."""
    world.cluster.edit(key, parallelism=shape(data))


def let_go(world):
    """Let stages that were told to stop write their checkpoint and end."""
    world.settle()
    world.cluster.finish_deletions()
    world.train()


def ranks(world, key):
    return sorted((stage["replica"], stage["stage"]) for stage in world.status(key)["stages"])


def pods(world):
    return [pod for pod in world.cluster.all_pods() if names.LABEL_STAGE in pod["metadata"]["labels"]]


@pytest.fixture
def training():
    world = World(nodes(6))
    key = world.submit(job(parallelism=shape(1), schedule=GLOBAL_BATCH))
    world.train()
    assert world.status(key)["replicas"] == 1
    return world, key


def test_a_job_that_trains_gets_the_replicas_that_it_is_scaled_to(training):
    world, key = training
    scaled(world, key, 3)
    let_go(world)

    status = world.status(key)
    assert status["state"] == "Training"
    assert (status["replicas"], status["attempt"], status["restarts"]) == (3, 2, 0)
    assert status["selector"] == f"{names.LABEL_JOB}=gpt"
    assert ranks(world, key) == [(replica, stage) for replica in range(3) for stage in range(2)]
    assert len(pods(world)) == 6
    assert status["chosen"]["microBatches"] * 3 * status["chosen"]["microBatchSize"] == 48
    assert world.condition(key, "Resized")["status"] == "True"
    assert "Resizing" in world.told()


def test_and_fewer_again(training):
    world, key = training
    for data in (2, 1):
        scaled(world, key, data)
        let_go(world)
    assert ranks(world, key) == [(0, 0), (0, 1)]
    assert world.status(key)["state"] == "Training"


def test_a_job_stays_as_it_is_where_there_is_no_room_for_more():
    world = World(nodes(8))
    world.submit(job(name="other", parallelism={"pipeline": 2}))
    key = world.submit(job(parallelism=shape(1), schedule=GLOBAL_BATCH))
    world.train()
    before = pods(world)
    scaled(world, key, 4)
    let_go(world)

    status = world.status(key)
    assert (status["state"], status["replicas"], status["attempt"]) == ("Training", 1, 1)
    assert pods(world) == before, "a pod was touched"
    resized = world.condition(key, "Resized")
    assert (resized["status"], resized["reason"]) == ("False", "NoRoom")
    assert "stays at 1 of the 4 replicas" in resized["message"]
    assert world.told().count("ResizeWaits") == 1


def test_what_the_cluster_could_never_hold_is_said_so(training):
    world, key = training
    scaled(world, key, 24)
    world.settle()
    assert world.condition(key, "Resized")["reason"] == "CannotBePlanned"
    assert world.status(key)["state"] == "Training"


def test_it_grows_once_there_is_room(training):
    world, key = training
    scaled(world, key, 4)
    world.settle()
    for name in ("n6", "n7"):
        world.cluster.create(node(name))
    world.cluster.pass_time(3600)
    let_go(world)
    assert (world.status(key)["replicas"], world.status(key)["state"]) == (4, "Training")


def test_what_was_asked_for_and_taken_back_is_forgotten(training):
    world, key = training
    scaled(world, key, 4)
    world.settle()
    scaled(world, key, 1)
    world.settle()
    assert world.condition(key, "Resized")["status"] == "True"
    assert world.status(key)["attempt"] == 1


def test_growing_passes_nobody_who_waits_ahead():
    world = World(nodes(4))
    world.cluster.create(priority_class("urgent", 10, policy="Never"))
    key = world.submit(job(parallelism=shape(1), schedule=GLOBAL_BATCH))
    world.train()
    ahead = job(name="large", parallelism={"pipeline": 3}, scheduling={"priorityClassName": "urgent"})
    world.submit(ahead)
    world.settle()

    scaled(world, key, 2)
    let_go(world)

    assert world.status(key)["replicas"] == 1
    assert "default/large" in world.condition(key, "Resized")["message"]


def test_a_controller_that_dies_in_between_goes_on(training):
    world, key = training
    scaled(world, key, 2)
    world.reconcile(key)
    world.restart()
    let_go(world)
    assert (world.status(key)["replicas"], world.status(key)["state"]) == (2, "Training")
    assert world.status(key)["attempt"] == 2


# Fewer replicas rather than wait

ELASTIC = {"parallelism": shape(4), "schedule": GLOBAL_BATCH, "scheduling": {"minReplicas": 2}}


def test_an_elastic_job_begins_with_as_many_replicas_as_have_room_and_grows_to_what_it_wants():
    world = World(nodes(6))
    key = world.submit(job(**ELASTIC))
    world.train()
    assert (world.status(key)["replicas"], world.status(key)["state"]) == (3, "Training")
    assert world.condition(key, "Resized")["status"] == "False"

    for name in ("n6", "n7"):
        world.cluster.create(node(name))
    world.cluster.pass_time(3600)
    let_go(world)
    assert (world.status(key)["replicas"], world.status(key)["state"]) == (4, "Training")
    assert world.condition(key, "Resized")["reason"] == "AsWanted"


def test_an_elastic_job_that_loses_a_node_goes_on_with_fewer_replicas():
    world = World(nodes(8))
    key = world.submit(job(**ELASTIC))
    world.train()
    assert world.status(key)["replicas"] == 4

    gone = world.status(key)["stages"][0]["node"]
    world.cluster.objects.pop(("Node", "", gone))
    for pod in world.cluster.all_pods():
        if pod["spec"].get("nodeName") == gone:
            world.cluster.objects.pop(("Pod", "default", pod["metadata"]["name"]))
    let_go(world)

    status = world.status(key)
    assert (status["replicas"], status["state"], status["restarts"]) == (3, "Training", 0)


def test_below_its_least_number_it_waits_for_all_of_them():
    world = World(nodes(3))
    key = world.submit(job(**ELASTIC))
    world.settle()
    assert world.status(key)["state"] == "Waiting"
    assert not pods(world)


def test_a_job_without_bounds_waits_as_before():
    world = World(nodes(6))
    key = world.submit(job(parallelism=shape(4), schedule=GLOBAL_BATCH))
    world.settle()
    assert world.status(key)["state"] == "Waiting"


def test_two_elastic_jobs_share_what_there_is():
    world = World(nodes(8))
    first, second = (world.submit(job(name=name, **ELASTIC)) for name in ("first", "second"))
    world.train()
    assert world.status(first)["replicas"] == 4
    assert world.status(second)["state"] == "Waiting"
    scaled(world, first, 2)
    let_go(world)
    assert (world.status(first)["replicas"], world.status(second)["replicas"]) == (2, 2)
