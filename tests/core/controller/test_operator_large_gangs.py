"""Gangs of many ranks: worked on in lots, so that others have their turn, and overtaken by nobody meanwhile."""

import asyncio

import pytest

from pipelinejob_operator.admission import backfill
from pipelinejob_operator.controller import actions
from pipelinejob_operator.controller.reconcile import Controller
from support.clusters.operatorworld import SETTINGS, World
from support.manifests.jobs import job, node

LARGE = 64  # ranks


@pytest.fixture
def world():
    found = World([node(f"n{number}", gpus=16, cpu="128", memory="1Ti") for number in range(5)])
    found.controller = Controller(
        found.cache, settings=SETTINGS, clock=lambda: found.cluster.now, wake=lambda key: None
    )
    return found


def passed(world, *keys):
    """Do a pass over each, then work through the line."""

    async def work():
        for key in keys:
            await world.controller.reconcile(key)
        await world.controller.admissions.cycle()

    asyncio.run(work())


def large(name="large"):
    return job(name, parallelism={"pipeline": 2, "data": LARGE // 2})


def test_a_gang_is_made_and_let_go_in_lots(monkeypatch):
    monkeypatch.setattr(actions, "_PODS_A_PASS", 3)
    world = World([node("n0", gpus=8)])
    key = world.submit(job(parallelism={"pipeline": 2, "data": 4}))

    lots = []
    while not lots or lots[-1]:
        before = len(world.cluster.writes)
        world.reconcile(key)
        lots.append([(verb, item["kind"]) for verb, item in world.cluster.writes[before:]])

    assert [lot.count(("apply", "Pod")) for lot in lots if ("apply", "Pod") in lot] == [3, 3, 2]
    assert [lot.count(("change", "Pod")) for lot in lots if ("change", "Pod") in lot] == [3, 3, 2]
    assert not any(pod["spec"].get("schedulingGates") for pod in world.cluster.all_pods())


def test_a_gang_that_is_let_go_in_part_is_let_go_whole_by_the_next_operator(monkeypatch):
    monkeypatch.setattr(actions, "_PODS_A_PASS", 3)
    world = World([node("n0", gpus=8)])
    key = world.submit(job(parallelism={"pipeline": 2, "data": 4}))
    while not any(verb == "change" for verb, _ in world.cluster.writes):
        world.reconcile(key)
    assert 0 < len([pod for pod in world.cluster.all_pods() if pod["spec"].get("schedulingGates")]) < 8

    world.restart()
    world.train(key)

    assert world.status(key)["state"] == "Training"
    assert world.status(key)["attempt"] == 1


def test_before_a_large_job_has_asked_nobody_passes_it_and_its_room_is_not_reckoned(world, monkeypatch):
    reckoned = []
    reserve = backfill.reserve
    monkeypatch.setattr(backfill, "reserve", lambda job, *rest: reckoned.append(job.key.name) or reserve(job, *rest))
    first = world.submit(large())
    world.cluster.pass_time(1)
    second = world.submit(job("small"))

    passed(world, second)
    passed(world, second)
    assert world.condition(second, "Placed")["message"].startswith("waits behind default/large")
    assert "large" not in reckoned

    passed(world, first, second)
    passed(world, first, second)
    assert (world.status(first)["state"], world.status(second)["state"]) == ("Starting", "Starting")


def test_one_that_cleans_up_keeps_no_more_than_the_room_that_it_needs(world):
    first = world.submit(large())
    passed(world, first)
    passed(world, first)
    world.controller = Controller(
        world.cache, settings=SETTINGS, clock=lambda: world.cluster.now, wake=lambda key: None
    )
    restarting = world.cluster.job(first)
    stages = [
        {name: value for name, value in stage.items() if name != "node"} for stage in world.status(first)["stages"]
    ]
    world.cluster._put(restarting | {"status": restarting["status"] | {"state": "Restarting", "stages": stages}})
    second = world.submit(job("small"))

    passed(world, second)
    passed(world, second)

    assert world.status(second)["state"] == "Starting"


def test_for_the_last_in_line_no_room_is_kept(world, monkeypatch):
    monkeypatch.setattr(backfill.Ahead, "keep_for", lambda *_: pytest.fail("nobody stands behind it"))
    key = world.submit(job())

    asyncio.run(world.controller.admissions.cycle())
    passed(world, key)
    passed(world, key)

    assert world.status(key)["state"] == "Starting"
