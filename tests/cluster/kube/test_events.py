"""Events on jobs: joined while they wait, limited for each job and for all, and never lost in silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from structlog.testing import capture_logs

from pipelinejob_operator.cluster import Event, ForbiddenError, Object, UnavailableError
from pipelinejob_operator.kube import recorder as recorders
from pipelinejob_operator.kube.recorder import Recorder
from pipelinejob_operator.process.opmetrics import OperatorMetrics

LONG_S = 60  # more than anything here takes on the slowest machine
JOB = {"metadata": {"namespace": "n", "name": "job", "uid": "u"}}
WAITING = Event(type="Normal", reason="Waiting", message="no room")


def numbered(number: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": f"job-{number}", "uid": f"u-{number}"}}


class Clock:
    """Each look at it takes a second, so that no rate keeps a test waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Still(Clock):
    def __call__(self) -> float:
        return self.now


class Written:
    """An API server that notes what is written; the first of `errors` are raised instead."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.requests: list[tuple[str, dict[str, Any]]] = []

    async def request(self, method: str, path: str, *, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self._errors:
            raise self._errors.pop(0)
        self.requests.append((method, body))
        return body

    def notes(self) -> list[str]:
        return [body["note"] for method, body in self.requests if method == "POST"]


class World:
    def __init__(self, written: Written, *, clock: Clock | None = None, **how: Any) -> None:
        self.written, self.metrics = written, OperatorMetrics()
        self.recorder = Recorder(written, instance="op", metrics=self.metrics.events, monotonic=clock or Clock(), **how)

    def record(self, *events: Event, job: Object = JOB) -> None:
        for event in events:
            self.recorder.record(job, event)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"pipelinejob_operator_events_{name}", labels) or 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.recorder.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONG_S):
            while not condition():
                await asyncio.sleep(0.001)

    async def drained(self) -> None:
        await self.until(lambda: not self.recorder._lines and not self.recorder._in_work)


async def test_an_event_that_repeats_is_one_series():
    world = World(Written())
    async with world.running():
        for _ in range(3):
            world.record(WAITING)
            await world.drained()

    assert [method for method, _ in world.written.requests] == ["POST", "PATCH", "PATCH"]
    assert world.written.requests[2][1]["series"]["count"] == 3


async def test_events_alike_that_wait_together_are_written_once_with_their_number():
    world = World(Written())
    world.record(*[Event(type="Normal", reason="Waiting", message=f"{number} nodes") for number in range(40)])
    async with world.running():
        await world.drained()

    ((method, body),) = world.written.requests
    assert (method, body["note"], body["series"]["count"]) == ("POST", "39 nodes", 40)
    assert body["series"]["lastObservedTime"] == body["eventTime"]
    assert world.value("written_total") == 1


async def test_one_event_alone_is_no_series():
    world = World(Written())
    world.record(WAITING)
    async with world.running():
        await world.drained()

    assert "series" not in world.written.requests[0][1]


async def test_what_happened_last_is_told_last():
    world = World(Written())
    world.record(WAITING, Event(type="Normal", reason="Placed", message="placed"), WAITING)
    async with world.running():
        await world.drained()

    assert world.written.notes() == ["placed", "no room"]


async def test_a_storm_over_three_thousand_jobs_loses_nothing():
    world = World(Written())
    for reason in ("Waiting", "Admitted", "Placed", "StagesReady"):
        for number in range(3000):
            world.record(Event(type="Normal", reason=reason, message=reason), job=numbered(number))
    async with world.running():
        await world.drained()

    assert len(world.written.requests) == 12_000
    assert [body["note"] for _, body in world.written.requests if body["regarding"]["uid"] == "u-7"] == [
        "Waiting",
        "Admitted",
        "Placed",
        "StagesReady",
    ]
    assert world.value("waiting") == 0


async def test_a_jobs_events_are_limited_and_what_that_drops_is_counted():
    world = World(Written(), clock=Still())
    world.record(*[Event(type="Normal", reason=f"Noise{number}", message="") for number in range(40)])
    async with world.running():
        await world.drained()

        assert len(world.written.requests) == 25
        assert world.value("dropped_total", cause="object_limit") == 15

        world.recorder._monotonic.now += 601
        world.record(*[Event(type="Normal", reason=f"Later{number}", message="") for number in range(40)])
        await world.drained()

    assert len(world.written.requests) == 27


async def test_more_than_memory_is_meant_for_is_dropped_and_counted():
    world = World(Written(), max_waiting=10)
    for number in range(25):
        world.record(WAITING, WAITING, job=numbered(number))

    assert world.value("waiting") == 10
    assert world.value("dropped_total", cause="queue_full") == 30

    async with world.running():
        await world.drained()
    assert len(world.written.requests) == 10


async def test_an_api_server_that_is_away_for_a_while_gets_all_of_them_later(monkeypatch):
    monkeypatch.setattr(recorders, "_PAUSE_S", 0.01)
    world = World(Written(*[UnavailableError("away")] * 50), clock=Still())
    for number in range(10):
        world.record(WAITING, job=numbered(number))
    async with world.running():
        await world.until(lambda: len(world.written.requests) == 10)

    assert {body["regarding"]["name"] for _, body in world.written.requests} == {f"job-{n}" for n in range(10)}
    assert world.value("dropped_total", cause="too_old") == 0


async def test_what_is_refused_is_counted():
    world = World(Written(ForbiddenError("the namespace is being terminated")))
    world.record(WAITING)
    async with world.running():
        await world.drained()

    assert not world.written.requests
    assert world.value("dropped_total", cause="refused") == 1


async def test_drops_are_told_in_one_line_with_numbers(monkeypatch):
    monkeypatch.setattr(recorders, "_TELL_DROPPED_S", 0.01)
    world = World(Written(), max_waiting=1)
    for number in range(100):
        world.record(WAITING, job=numbered(number))
    with capture_logs() as logs:
        async with world.running():
            await world.until(lambda: any(line["event"] == "events dropped" for line in logs))

    (line,) = [line for line in logs if line["event"] == "events dropped"]
    assert line["queue_full"] == 99
