"""What jobs in line are told: a head that moves, and room that comes and goes, change a few sentences of thousands."""

import pytest

from pipelinejob_operator.admission.line.priority import Priorities, Priority
from pipelinejob_operator.admission.line.queueing import Order
from pipelinejob_operator.admission.line.telling import NAMES_THE_HEAD, tell
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.controller.reconcile import Controller, ControllerSettings
from pipelinejob_operator.objects.job import read_job
from support.clusters.failing_pods import fail
from support.clusters.fakecluster import FakeCluster
from support.clusters.operatorworld import World
from support.manifests.jobs import job, nodes

ORDER = Order(priorities=Priorities(classes={"high": Priority(value=10)}))
BESIDE_A_MOVE = 12  # statuses: the places that name the head, the job that is placed as it starts


def waiting(index, **spec):
    manifest = job(f"j{index:04}", **spec)
    return read_job({**manifest, "metadata": {**manifest["metadata"], "uid": f"uid-{index}", "generation": 1}})


def sentences(line, missing):
    return {
        each.uid: tell(each, first=line[0] if place else None, ahead=place, order=ORDER, find_missing=lambda: missing)
        for place, each in enumerate(line)
    }


@pytest.mark.parametrize("length", [20, 2000])
def test_a_head_that_moves_changes_as_many_sentences_in_a_long_line_as_in_a_short_one(length):
    line, changed = [waiting(index) for index in range(length)], []
    told = sentences(line, "3 of 4 GPUs are free")
    for move in range(5):
        line = line[1:]
        now = sentences(line, f"{move} of 4 GPUs are free")
        changed.append(sum(now[uid] != told[uid] for uid in now))
        told = now

    assert changed == [NAMES_THE_HEAD + 1] * 5


def test_a_job_that_comes_first_changes_as_many():
    line = [waiting(index) for index in range(2000)]
    before = sentences(line, "4 GPUs are missing")

    now = sentences([waiting(9999, scheduling={"priorityClassName": "high"}), *line], "4 GPUs are missing")

    assert sum(now[uid] != before[uid] for uid in before) == NAMES_THE_HEAD + 1
    assert now["uid-0"][1][-1] == "behind default/j9999, which has priority 10 over 0"


def test_a_job_far_back_is_told_no_name_no_place_and_no_amount():
    reason, parts = sentences([waiting(index) for index in range(50)], "3 of 4 GPUs are free")["uid-40"]

    assert reason == "FarBack"
    assert parts == ["waits in line: more than 8 jobs that wait for room come before it"]


@pytest.mark.parametrize("length", [15, 45])
async def test_the_statuses_that_a_move_of_the_head_writes_do_not_grow_with_the_line(length):
    cluster, woken = FakeCluster(nodes(2)), []
    controller = Controller(
        cluster, settings=ControllerSettings(trainer_image="trainer:1"), clock=lambda: cluster.now, wake=woken.append
    )
    keys = [Key("default", f"j{index:02}") for index in range(length)]
    for key in keys:
        cluster.create(job(key.name))
        cluster.pass_time(1)
        await controller.reconcile(key)
    await _settle(controller, cluster, woken)

    writes = []
    for key in keys[:3]:
        before = len(cluster.writes)
        cluster.remove(cluster.job(key))
        controller.admissions.notice()
        await _settle(controller, cluster, woken)
        writes.append(sum(verb == "status" for verb, _ in cluster.writes[before:]))

    assert max(writes) <= BESIDE_A_MOVE
    assert cluster.job(keys[3])["status"]["state"] == "Starting"
    assert {_told(cluster, key) for key in keys[13:]} == {"FarBack"}


def test_a_gang_that_restarts_is_told_why_it_waits_once_that_lasts():
    world = World(nodes(2))
    key = world.submit(job())
    world.train()
    world.cluster.cordon("n1")
    fail(world, "gpt-r0-s1", 1)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()
    assert (world.status(key)["state"], world.condition(key, "Placed")["reason"]) == ("Restarting", "Restarting")

    world.cluster.pass_time(world.settings.waiting_retry_s)
    world.settle()

    assert (world.status(key)["state"], world.condition(key, "Placed")["reason"]) == ("Waiting", "NeverFits")


async def _settle(controller, cluster, woken):
    """Work through the line and pass over whoever is woken until nobody is."""
    for _ in range(4):
        cluster.pass_time(1)
        controller.admissions._untold._tokens = 100.0  # the budget of many seconds
        await controller.admissions.cycle()
        while woken:
            await controller.reconcile(woken.pop(0))


def _told(cluster, key):
    return next(each["reason"] for each in cluster.job(key)["status"]["conditions"] if each["type"] == "Placed")
