"""The work queue keeps client-go's promises."""

import asyncio

import pytest

from pipelinejob_operator.process.workqueue import WorkQueue


async def take(queue: WorkQueue[str], *, within_s: float = 30) -> str | None:
    return await asyncio.wait_for(queue.get(), within_s)


async def is_empty(queue: WorkQueue[str]) -> bool:
    """Nothing is handed out after everything that is due at once has run."""
    try:
        await asyncio.wait_for(queue.get(), 0.03)
    except TimeoutError:
        return True
    return False


async def test_a_key_added_thrice_is_handed_out_once():
    queue = WorkQueue[str]()
    for _ in range(3):
        queue.add("a")

    assert await take(queue) == "a"
    queue.done("a")
    assert await is_empty(queue)


async def test_keys_come_in_the_order_they_were_added():
    queue = WorkQueue[str]()
    for key in "cab":
        queue.add(key)

    assert [await take(queue) for _ in range(3)] == ["c", "a", "b"]


async def test_an_urgent_key_comes_before_all_others_and_once():
    queue = WorkQueue[str]()
    for key in "cab":
        queue.add(key)
    queue.add("b", is_urgent=True)

    assert len(queue) == 3
    assert [await take(queue) for _ in range(3)] == ["b", "c", "a"]
    for key in "cab":
        queue.done(key)
    assert await is_empty(queue)
    assert queue.oldest_s() == 0


async def test_a_key_that_is_wanted_urgently_while_in_work_comes_first_afterwards():
    queue = WorkQueue[str]()
    queue.add("a")
    await take(queue)
    queue.add("b")
    queue.add("a", is_urgent=True)
    queue.done("a")

    assert [await take(queue) for _ in range(2)] == ["a", "b"]


async def test_what_failed_is_tried_again_without_its_delay():
    queue = WorkQueue[str]()
    queue.add("a")
    await take(queue)
    for _ in range(20):
        queue.add_after_failure("a")
    queue.done("a")
    queue.retry_failed()

    assert await take(queue) == "a"


async def test_a_key_in_work_is_not_handed_out_again_until_it_is_done():
    queue = WorkQueue[str]()
    queue.add("a")
    await take(queue)
    queue.add("a")

    assert await is_empty(queue)
    queue.done("a")
    assert await take(queue) == "a"


async def test_a_key_comes_after_its_delay_and_not_before():
    queue = WorkQueue[str]()
    started = asyncio.get_running_loop().time()
    queue.add_after("a", 0.05)

    assert len(queue) == 0
    assert await take(queue) == "a"
    assert asyncio.get_running_loop().time() - started >= 0.05


async def test_of_two_delays_the_earlier_counts():
    queue = WorkQueue[str]()
    queue.add_after("a", 6000)
    queue.add_after("a", 0.01)
    queue.add_after("a", 3000)

    assert await take(queue) == "a"


async def test_a_delayed_key_is_handed_out_at_once_when_an_event_adds_it():
    queue = WorkQueue[str]()
    queue.add_after("a", 6000)
    queue.add("a")

    assert await take(queue) == "a"


class DelayRecorder(WorkQueue[str]):
    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def add_after(self, key: str, delay_s: float) -> None:
        self.delays.append(delay_s)


async def test_delays_after_failures_double_from_5_ms_to_5_minutes():
    queue = DelayRecorder()
    for _ in range(18):
        queue.add_after_failure("a")

    assert queue.delays[:4] == [0.005, 0.01, 0.02, 0.04]
    assert queue.delays[15:] == [163.84, 300.0, 300.0]


async def test_a_forgotten_key_fails_anew_with_the_smallest_delay():
    queue = DelayRecorder()
    queue.add_after_failure("a")
    queue.add_after_failure("a")
    queue.forget("a")
    queue.add_after_failure("a")

    assert queue.delays == [0.005, 0.01, 0.005]


async def test_a_caller_may_cap_the_delay():
    queue = DelayRecorder()
    for _ in range(12):
        queue.add_after_failure("a", max_delay_s=2)

    assert max(queue.delays) == 2


async def test_no_key_is_ever_in_the_hands_of_two_workers_and_none_is_lost():
    queue = WorkQueue[int]()
    in_work: set[int] = set()
    done: list[int] = []

    async def worker() -> None:
        while (key := await queue.get()) is not None:
            assert key not in in_work
            in_work.add(key)
            await asyncio.sleep(0.001)
            in_work.remove(key)
            done.append(key)
            queue.done(key)

    workers = [asyncio.create_task(worker()) for _ in range(4)]
    for round_ in range(5):
        for key in range(10):
            queue.add(key)
        await asyncio.sleep(0.002 * round_)
    async with asyncio.timeout(30):
        while len(queue) or in_work:
            await asyncio.sleep(0.001)
    queue.close()
    await asyncio.gather(*workers)

    assert set(done) == set(range(10))


async def test_a_worker_cancelled_while_it_waits_leaves_the_key_to_another():
    queue = WorkQueue[str]()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()

    assert await asyncio.wait_for(second, 30) == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_closed_queue_wakes_all_who_wait_and_takes_nothing_more():
    queue = WorkQueue[str]()
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()
    queue.add("a")
    queue.add_after("b", 0)

    assert await asyncio.wait_for(asyncio.gather(*waiting), 30) == [None, None, None]
    assert await take(queue) is None


async def test_a_long_queue_whose_passes_end_is_not_stuck():
    queue = WorkQueue[str]()
    queue.add("first")
    queue.add("last")
    await asyncio.sleep(0.05)
    first = await take(queue)

    assert queue.stuck_s() >= 0.05
    queue.done(first)
    assert queue.stuck_s() < queue.oldest_s()
