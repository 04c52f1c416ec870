"""Under pressure: an API server that asks to be left alone, a rate of our own, and turns between jobs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from pipelinejob_operator.cluster import UnavailableError
from pipelinejob_operator.kube.api import Api, ThrottledError
from pipelinejob_operator.kube.pacing import MAX_HOLD_S, Pace, on_behalf_of
from pipelinejob_operator.kube.writes import Writes
from pipelinejob_operator.process.leader import NotLeaderError
from pipelinejob_operator.process.opmetrics import OperatorMetrics

LONG_S = 60  # more than anything here takes on the slowest machine
NO_JSON_OF_OURS = "<html>Service Unavailable</html>"


class Pressed:
    """An API server that gives its answers one after another, and then 200 for ever; it notes when it was asked."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, float]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, time.monotonic()))
        status, headers = self._answers.pop(0) if self._answers else (200, {})
        if status == 200:
            return web.json_response({"metadata": {"name": "x"}})
        return web.Response(status=status, headers=headers, text=NO_JSON_OF_OURS)

    @property
    def gaps_s(self) -> list[float]:
        times = [at_s for _, at_s in self.asked]
        return [later - earlier for earlier, later in pairwise(times)]

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[Configuration]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.answer)
        server = TestServer(application)
        await server.start_server()
        async with server:
            yield Configuration(host=str(server.make_url("")).rstrip("/"))


def written_through(api: Api, check_fence=lambda: None) -> Writes:
    return Writes(api, path=lambda *_: "/x", check_fence=check_fence, take_up=lambda *_: None)


# ---- what the API server asks for


@pytest.mark.parametrize("status", [429, 503, 500])
async def test_a_write_comes_back_when_the_api_server_said(status):
    server, metrics = Pressed((status, {"Retry-After": "1"})), OperatorMetrics()
    async with server.served() as configuration, Api(configuration, metrics=metrics.requests) as api:
        answer = await written_through(api).send("POST", "/x", body={"kind": "Pod"})

    assert answer == {"metadata": {"name": "x"}}
    assert len(server.asked) == 2
    assert server.gaps_s[0] >= 1
    labels = {"code": str(status), "verb": "POST", "host": configuration.host.removeprefix("http://")}
    assert metrics.registry.get_sample_value("rest_client_request_retries_total", labels) == 1


@pytest.mark.parametrize(
    ("status", "headers"),
    [(429, {}), (503, {}), (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), (404, {"Retry-After": "1"})],
)
async def test_without_a_number_of_seconds_nothing_is_sent_twice(status, headers):
    server = Pressed((status, headers))
    async with server.served() as configuration, Api(configuration) as api:
        with pytest.raises(Exception, match="Service Unavailable") as raised:
            await api.request("GET", "/x")

    assert not isinstance(raised.value, ThrottledError)
    assert len(server.asked) == 1


async def test_a_write_that_would_come_too_late_is_not_sent_again():
    server = Pressed((429, {"Retry-After": "6"}))  # a write has five seconds
    async with server.served() as configuration, Api(configuration) as api:
        with pytest.raises(ThrottledError, match="429"):
            await written_through(api).send("POST", "/x", body={})

    assert len(server.asked) == 1


async def test_all_tries_of_a_request_lie_within_its_time():
    server = Pressed(*[(429, {"Retry-After": "1"})] * 20)
    async with server.served() as configuration, Api(configuration) as api:
        with pytest.raises(UnavailableError):
            await api.request("POST", "/x", body={}, timeout_s=2.5)

    assert 1 <= len(server.asked) <= 3
    assert sum(server.gaps_s) < 2.5


async def test_a_write_whose_operator_lost_the_lease_meanwhile_is_not_sent_again():
    checks: list[None] = []

    def check_fence() -> None:
        checks.append(None)
        if len(checks) > 1:
            raise NotLeaderError("lost")

    server = Pressed((429, {"Retry-After": "1"}))
    async with server.served() as configuration, Api(configuration) as api:
        with pytest.raises(NotLeaderError):
            await written_through(api, check_fence).send("POST", "/x", body={})

    assert len(server.asked) == 1


async def test_a_write_whose_operator_lost_the_lease_in_the_line_is_not_sent():
    server, pace, may_write = Pressed(), Pace(max_at_once=1), [True]

    def check_fence() -> None:
        if not may_write[0]:
            raise NotLeaderError("lost")

    async with server.served() as configuration, Api(configuration, pace=pace) as api:
        async with pace.turn():
            writing = asyncio.create_task(written_through(api, check_fence).send("POST", "/x", body={}))
            await asyncio.sleep(0)
            may_write[0] = False
        with pytest.raises(NotLeaderError):
            await writing

    assert not server.asked


async def test_while_the_api_server_asks_to_be_left_alone_others_wait_and_the_lease_does_not():
    server, pace = Pressed((429, {"Retry-After": "2"})), Pace()
    async with (
        server.served() as configuration,
        Api(configuration, pace=pace) as api,
        Api(configuration) as lease_api,
    ):
        refused = asyncio.create_task(api.request("GET", "/refused"))
        async with asyncio.timeout(LONG_S):
            while pace._wait_s() <= 0:  # until the answer is here
                await asyncio.sleep(0.001)
            await asyncio.gather(api.request("GET", "/other"), lease_api.request("GET", "/lease"), refused)
            async with api.lines("/watch", query={"watch": "1"}):
                pass

    assert [path for path, _ in server.asked][:2] == ["/refused", "/lease"]
    asked = dict(reversed(server.asked))  # the first time of each
    assert asked["/other"] - asked["/refused"] >= 2
    assert asked["/watch"] - asked["/refused"] >= 2


async def test_a_wrong_header_stops_the_operator_for_seconds_not_for_hours():
    pace = Pace()
    pace.hold(86_400)

    assert pace._wait_s() <= MAX_HOLD_S


# ---- a rate of our own


async def test_after_the_burst_requests_go_at_the_rate():
    pace, began_s = Pace(qps=50, burst=5), time.monotonic()
    for _ in range(15):
        async with pace.turn():
            pass

    assert time.monotonic() - began_s >= 10 / 50


async def test_a_rate_of_zero_is_none():
    pace = Pace(qps=0, burst=1)
    async with asyncio.timeout(LONG_S):
        for _ in range(10_000):
            async with pace.turn():
                pass


# ---- turns


class Line:
    """Requests that wait behind one that holds the only place; `order` is that in which they went."""

    def __init__(self) -> None:
        self.pace = Pace(max_at_once=1)
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def join(self, key: str, *, times: int = 1, is_background: bool = False) -> None:
        with on_behalf_of(key, is_background=is_background):
            self.tasks += [asyncio.create_task(self._go(key)) for _ in range(times)]

    async def _go(self, key: str) -> None:
        async with self.pace.turn():
            self.order.append(key)
            await asyncio.sleep(0)

    async def let_go(self, *, before=lambda: None) -> list[str]:
        async with self.pace.turn():
            before()
            await asyncio.sleep(0)
        async with asyncio.timeout(LONG_S):
            await asyncio.gather(*self.tasks, return_exceptions=True)
        return self.order


async def test_a_gang_of_thousands_keeps_no_other_job_waiting():
    line = Line()

    def join() -> None:
        line.join("gang", times=2048)
        line.join("status")
        line.join("two", times=2)

    order = await line.let_go(before=join)

    assert order[:6] == ["gang", "status", "two", "gang", "two", "gang"]
    assert order.count("gang") == 2048


async def test_what_runs_in_the_background_goes_when_nothing_else_waits():
    line = Line()

    def join() -> None:
        line.join("events", times=2, is_background=True)
        line.join("job", times=3)

    assert await line.let_go(before=join) == ["job", "job", "job", "events", "events"]


async def test_requests_that_are_given_up_take_no_turn_with_them():
    line = Line()

    def join() -> None:
        line.join("gives up", times=3)
        line.join("stays", times=2)
        for task in line.tasks[:3]:
            asyncio.get_running_loop().call_soon(task.cancel)

    assert await line.let_go(before=join) == ["stays", "stays"]
    async with asyncio.timeout(LONG_S), line.pace.turn():
        pass


async def test_a_turn_that_came_in_the_moment_of_giving_up_goes_to_another():
    pace = Pace(max_at_once=1)
    async with pace.turn():
        waiting = asyncio.create_task(_take(pace))
        await asyncio.sleep(0)
    waiting.cancel()  # its turn came with the end of the block
    with pytest.raises(asyncio.CancelledError):
        await waiting

    async with asyncio.timeout(LONG_S):
        await _take(pace)


async def _take(pace: Pace) -> None:
    async with pace.turn():
        pass
