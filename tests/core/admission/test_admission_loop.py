"""The loop that works through the line of all jobs: in its own order, as much as fits, and no more work than that."""

import asyncio
import contextlib

import pytest

from pipelinejob_operator.cluster import ConflictError, UnavailableError
from pipelinejob_operator.controller.admission import admission_loop, untold
from support.clusters.awake import SETTINGS, Awake
from support.manifests.jobs import node, nodes, priority_class


async def test_room_is_given_in_the_order_of_the_line_whoever_asked_first():
    world = Awake(nodes(4))
    keys = world.submit("a", "b", "c")

    await world.work(*reversed(keys))

    assert [world.state(key) for key in keys] == ["Starting", "Starting", "Waiting"]
    assert world.placed(keys[2])["reason"] == "NoRoom"


async def test_one_that_did_not_ask_yet_keeps_its_room_and_is_passed_over_first():
    world = Awake(nodes(4))
    (large,) = world.submit("large", parallelism={"pipeline": 4})
    (younger,) = world.submit("younger")
    await world.ask(younger)
    await world.controller.admissions.cycle()

    assert large in world.woken
    await world.follow()
    await world.work()
    assert [world.state(key) for key in (large, younger)] == ["Starting", "Waiting"]


async def test_an_operator_that_starts_passes_over_a_new_job_before_those_that_know_why_they_wait(monkeypatch):
    monkeypatch.setattr(admission_loop, "_URGENT", 2)
    world = Awake(nodes(2))
    keys = world.submit(*(f"j{index}" for index in range(6)))
    await world.work(*keys)
    world.submit("new")
    world.start()

    await world.controller.admissions.cycle()

    assert [key.name for key in world.woken] == ["j1", "j2", "new"]


async def test_what_came_free_goes_to_the_head_in_the_next_cycle():
    world = Awake(nodes(2))
    first, second, third = world.submit("first", "second", "third")
    await world.work(first, second, third)
    world.cluster.remove(world.cluster.job(first))
    world.controller.admissions.notice()

    await world.controller.admissions.cycle()
    await world.follow()

    assert [world.state(key) for key in (second, third)] == ["Starting", "Waiting"]


async def test_nothing_new_costs_nothing_and_wakes_nobody():
    world = Awake(nodes(2))
    keys = world.submit(*(f"j{index}" for index in range(20)))
    await world.work(*keys)
    await world.controller.admissions.cycle()
    await world.follow()
    writes, decided = len(world.cluster.writes), len(world.counted.decided)

    for _ in range(3):
        await world.controller.admissions.cycle()

    assert world.woken == []
    assert (len(world.cluster.writes), len(world.counted.decided)) == (writes, decided)
    assert world.counted.waiting == 19


async def test_who_waits_for_room_is_not_looked_at_by_the_clock():
    world = Awake(nodes(2))
    first, second = world.submit("first", "second")
    await world.work(first, second)

    assert await world.ask(second) == [None]


async def test_a_gang_that_starts_is_looked_at_when_a_limit_of_its_time_is_due_and_not_every_second():
    world = Awake(nodes(2))
    (key,) = world.submit("gpt")
    await world.work(key)
    await world.ask(key)
    await world.ask(key)

    (again_s,) = await world.ask(key)
    assert again_s == SETTINGS.gang_timeout_s

    world.cluster.pass_time(100)
    world.cluster.bind()
    (again_s,) = await world.ask(key)
    assert again_s == pytest.approx(25, abs=2)


async def test_sentences_of_those_who_wait_are_written_within_a_budget_and_all_in_the_end(monkeypatch):
    monkeypatch.setattr(untold, "_AT_ONCE", 5.0)
    monkeypatch.setattr(untold, "_PER_S", 0.0)
    world = Awake(nodes(2))
    keys = world.submit(*(f"j{index:02}" for index in range(20)))
    await world.ask(*keys)
    world.controller.admissions._untold._tokens = 5.0
    await world.controller.admissions.cycle()
    told = [key for key in world.woken if key != keys[0]]

    assert told == keys[1:6], "the first of the line come first"
    for _ in range(4):
        world.controller.admissions._untold._tokens = 5.0
        await world.controller.admissions.cycle()
        await world.follow()
    assert {world.state(key) for key in keys[1:]} == {"Waiting"}


async def test_an_operator_that_starts_anew_decides_the_same_and_writes_no_sentence_again():
    world = Awake([*nodes(2), priority_class("high", 10)])
    keys = world.submit(*(f"j{index}" for index in range(6)))
    for _ in range(4):
        await world.work(*keys)
    writes = len(world.cluster.writes)
    world.start()

    await world.work(*keys)

    assert [write for write in world.cluster.writes[writes:] if write[0] == "status"] == []


async def test_jobs_of_one_shape_are_planned_once():
    world = Awake(nodes(40))
    planner, drafted = world.controller._planner, []
    draft = planner._draft
    planner._draft = lambda job, ground: drafted.append(job.key.name) or draft(job, ground)
    keys = world.submit(*(f"j{index:02}" for index in range(15)))

    await world.work(*keys)

    assert {world.state(key) for key in keys} == {"Starting"}
    assert len(drafted) == 1


async def test_a_job_that_is_suspended_after_room_was_promised_gives_it_back():
    world = Awake(nodes(2))
    first, second = world.submit("first", "second")
    await world.ask(first, second)
    await world.controller.admissions.cycle()
    world.woken.clear()
    world.cluster.edit(first, suspend=True)

    await world.work(first, second)
    await world.work(first, second)

    assert [world.state(key) for key in (first, second)] == ["Suspended", "Starting"]


async def test_a_node_that_goes_while_room_is_chosen_is_not_promised():
    world = Awake([node("n0", gpus=2), node("n1", gpus=2)])
    (key,) = world.submit("gpt", parallelism={"pipeline": 2})
    await world.ask(key)
    world.cluster.lose_node("n0")

    await world.controller.admissions.cycle()
    await world.follow()

    nodes_used = {stage["node"] for stage in world.cluster.job(key)["status"]["stages"]}
    assert nodes_used == {"n1"}


async def test_the_loop_runs_until_it_is_cancelled_and_decides_when_something_is_noticed():
    world = Awake(nodes(2))
    (key,) = world.submit("gpt")
    running = asyncio.create_task(world.controller.admissions.run(may=lambda: asyncio.sleep(0)))
    await world.ask(key)
    while not world.woken:
        await asyncio.sleep(0)
    running.cancel()

    assert world.woken == [key]


async def test_a_class_that_comes_later_lets_the_job_start():
    world = Awake(nodes(2))
    (key,) = world.submit("gpt", scheduling={"priorityClassName": "late"})
    await world.work(key)
    assert world.placed(key)["reason"] == "NoPriorityClass"

    world.cluster._put(priority_class("late", 5))
    world.controller.admissions.notice()
    await world.controller.admissions.cycle()
    await world.follow()  # what admission makes of its pods is asked now, and the decision made again
    await world.controller.admissions.cycle()
    await world.follow()

    assert world.state(key) == "Starting"


async def test_a_place_whose_write_got_no_answer_is_kept_until_it_shows():
    world = Awake(nodes(2))
    first, second = world.submit("first", "second")
    await world.ask(first, second)
    await world.controller.admissions.cycle()
    world.cache.freeze()
    world.cluster.lose_answer = lambda verb, item: UnavailableError("no answer") if verb == "status" else None
    with pytest.raises(UnavailableError):
        await world.ask(first)
    world.cluster.lose_answer = lambda verb, item: None
    world.controller.admissions.forget(world.cluster.job(first)["metadata"]["uid"])

    await world.ask(second)
    await world.controller.admissions.cycle()
    with contextlib.suppress(ConflictError):
        await world.ask(second)
    world.cache.thaw()
    for _ in range(3):
        await world.work(first, second)

    assert [world.state(key) for key in (first, second)] == ["Starting", "Waiting"]


async def test_a_job_that_trips_the_loop_keeps_it_from_no_other():
    world = Awake(nodes(4))
    odd, other = world.submit("odd", "other")
    planner = world.controller._planner
    price = planner.price
    planner.price = lambda job, ground: 1 / 0 if job.key == odd else price(job, ground)

    await world.work(odd, other)
    await world.work(odd, other)

    assert "ZeroDivisionError" in world.placed(odd)["message"]
    assert world.state(other) == "Starting"


async def test_a_missing_claim_is_told_once_and_asked_for_by_the_clock():
    world = Awake(nodes(2))
    (key,) = world.submit("gpt", checkpoint={"volume": {"claimName": "typo"}})
    await world.work(key)
    await world.work(key)
    writes = len(world.cluster.writes)

    assert world.placed(key)["reason"] == "NoVolume"
    assert await world.ask(key) == [SETTINGS.waiting_retry_s]
    await world.controller.admissions.cycle()
    assert world.woken == []
    assert len(world.cluster.writes) == writes
