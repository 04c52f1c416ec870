"""Probes and scrapes are answered by a thread of their own, whatever the event loop does; and what they say."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pipelinejob_operator.process.loopwatch import LoopWatch
from pipelinejob_operator.process.opmetrics import OperatorMetrics
from pipelinejob_operator.process.probes import Look, Vitals, answering, look

PATIENCE_S = 60.0
WELL = {"unready": None, "sick": None}


class Cache:
    """A cache of one kind."""

    def __init__(self, kind: str, *, is_listed: bool = True, silent_s: float = 0.0) -> None:
        self.kind, self._silent_s = kind, silent_s
        self.synced = asyncio.Event()
        if is_listed:
            self.synced.set()

    def silent_s(self) -> float:
        return self._silent_s


class Queue:
    def __init__(self, stuck_s: float = 0.0) -> None:
        self._stuck_s = stuck_s

    def stuck_s(self) -> float:
        return self._stuck_s


class Leading:
    def __init__(self, *, held: bool = True) -> None:
        self.held = held

    async def wait(self) -> None: ...

    def check(self) -> None: ...


def ask(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@contextlib.contextmanager
def served(vitals: Vitals, export: Callable[[Sequence[Any]], Sequence[bytes]] | None = None) -> Iterator[int]:
    with answering(vitals, export or OperatorMetrics().export, "127.0.0.1", 0) as port:
        yield port


async def while_held(hold: Callable[[], None], questions: Callable[[], Any], let_go: threading.Event) -> Any:
    """Hold this event loop by `hold`, which ends once the questions, asked by a thread, were answered."""
    is_held = threading.Event()

    def run() -> Any:
        assert is_held.wait(PATIENCE_S)
        try:
            return questions()
        finally:
            let_go.set()

    asking = asyncio.create_task(asyncio.to_thread(run))
    await asyncio.sleep(0)
    is_held.set()
    hold()
    assert let_go.is_set(), "the loop was held until all was answered"
    return await asking


@pytest.mark.parametrize("keeps_the_interpreter", [False, True], ids=["in a call", "computing"])
async def test_probes_and_metrics_are_answered_while_the_event_loop_is_held(keeps_the_interpreter):
    let_go, jobs = (
        threading.Event(),
        [{"metadata": {"namespace": "n", "name": "j", "uid": "u", "resourceVersion": "1"}}],
    )

    def hold() -> None:
        until_s = time.monotonic() + PATIENCE_S
        if not keeps_the_interpreter:
            let_go.wait(PATIENCE_S)
        while not let_go.is_set() and time.monotonic() < until_s:
            pass

    with served(Vitals(lambda: look([Cache("Pod")], Queue(), Leading(), lambda: jobs))) as port:
        paths = ("/healthz", "/readyz", "/metrics")
        health, ready, metrics = await while_held(hold, lambda: [ask(port, path) for path in paths], let_go)

    assert (health, ready) == ((200, "ok"), (200, "ok"))
    assert metrics[0] == 200
    assert 'pipelinejob_restarts_total{namespace="n",pipelinejob="j"} 0.0' in metrics[1]


async def test_an_event_loop_that_is_held_for_too_long_fails_the_probe_and_is_forgiven_when_it_moves():
    vitals, let_go = Vitals(lambda: Look(at_s=time.monotonic(), **WELL), max_held_s=0.3), threading.Event()
    watching = asyncio.create_task(LoopWatch(OperatorMetrics(), on_tick=vitals.look).run())
    await asyncio.sleep(0)

    def until_it_fails() -> tuple[int, str]:
        until_s = time.monotonic() + PATIENCE_S
        while (answer := ask(port, "/healthz"))[0] == 200 and time.monotonic() < until_s:
            time.sleep(0.01)
        return answer

    with served(vitals) as port:
        status, said = await while_held(lambda: let_go.wait(PATIENCE_S), until_it_fails, let_go)
        async with asyncio.timeout(PATIENCE_S):
            while (await asyncio.to_thread(ask, port, "/healthz"))[0] != 200:
                await asyncio.sleep(0.01)
        assert ask(port, "/readyz") == (200, "ok")
    watching.cancel()

    assert status == 500
    assert said.startswith("the event loop has not moved for ")


def test_a_scrape_of_many_jobs_keeps_no_probe_waiting():
    going_on = threading.Event()

    def export(_: Sequence[Any]) -> Sequence[bytes]:
        assert going_on.wait(PATIENCE_S)
        return [b"told\n"]

    with served(Vitals(lambda: Look(at_s=time.monotonic(), **WELL)), export) as port:
        answers: list[tuple[int, str]] = []
        scrape = threading.Thread(target=lambda: answers.append(ask(port, "/metrics")))
        scrape.start()
        assert ask(port, "/healthz") == (200, "ok")
        going_on.set()
        scrape.join()

    assert answers == [(200, "told\n")]


@pytest.mark.parametrize(
    ("caches", "queue", "leading", "unready", "sick"),
    [
        ([Cache("Pod"), Cache("Node")], Queue(), Leading(), None, None),
        ([Cache("Pod", is_listed=False)], Queue(), Leading(), "not yet listed: Pod", None),
        (
            [Cache("Pod"), Cache("Node", silent_s=300.0)],
            Queue(),
            Leading(),
            None,
            "the watch of Node has not moved for 300 s",
        ),
        ([], Queue(121.0), Leading(), None, "jobs wait, and no pass has ended for 121 s"),
        ([], Queue(121.0), Leading(held=False), None, None),
    ],
    ids=["well", "not listed", "a silent watch", "stuck", "a stand-by works off nothing"],
)
def test_what_a_process_says_of_itself(caches, queue, leading, unready, sick):
    seen = look(caches, queue, leading, lambda: ["job"])

    assert (seen.unready, seen.sick) == (unready, sick)
    assert seen.jobs == (["job"] if leading.held else ())


def test_who_cannot_listen_is_told():
    vitals = Vitals(lambda: Look(at_s=time.monotonic(), **WELL))
    with (
        served(vitals) as port,
        pytest.raises(OSError, match="in use"),
        answering(vitals, OperatorMetrics().export, "127.0.0.1", port),
    ):
        pass
