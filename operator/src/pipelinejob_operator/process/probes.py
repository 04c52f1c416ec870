"""What is asked of this process from outside: /healthz, /readyz and /metrics, answered by a thread of its own.

A kubelet and Prometheus get their answer whatever the event loop does. The thread reads nothing
that passes change: ten times a second the event loop leaves a `Look` at this process, which nobody
changes afterwards. An old one is news by itself: the event loop is held.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from aiohttp import web

from pipelinejob_operator.cluster import Object
from pipelinejob_operator.process.leader import Leadership

_log = structlog.get_logger(__name__)

MAX_HELD_S = 30.0  # the Lease is lost long before; a loop held for longer will hardly come back
_MAX_SILENCE_S = 3 * 70.0
_MAX_WAIT_S = 120.0
_JOIN_S = 1.0
_SICK, _NOT_READY = 500, 503


Export = Callable[[Sequence[Object]], Sequence[bytes]]  # the metrics' text, in parts, with that of these jobs


class Watching(Protocol):
    """A cache of one kind of object, as health sees it."""

    kind: str
    synced: asyncio.Event

    def silent_s(self) -> float:
        """Return the seconds since it last heard something, or at least tried to."""


class Queue(Protocol):
    """The queue of jobs, as health sees it."""

    def stuck_s(self) -> float:
        """How long no job was given back, nor any was waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """This process as its event loop saw it at a moment of `time.monotonic`."""

    at_s: float
    unready: str | None  # why it is not ready; None if it is
    sick: str | None  # why it should be restarted; None if it should not
    jobs: Sequence[Object] = ()  # that this process tells of


class Vitals:
    """The last look at this process; `look` belongs to the event loop, all else may be asked from any thread."""

    def __init__(self, take: Callable[[], Look], *, max_held_s: float = MAX_HELD_S) -> None:
        self._take = take
        self._max_held_s = max_held_s
        self._last = take()

    def look(self) -> None:
        """Look at this process."""
        self._last = self._take()

    def unready(self) -> str | None:
        """Return why this process is not ready, None if it is."""
        return self._last.unready

    def sick(self) -> str | None:
        """Return why this process should be restarted, None if it should not."""
        held_s = time.monotonic() - self._last.at_s
        if held_s > self._max_held_s:
            return f"the event loop has not moved for {held_s:.0f} s; the log says what holds it"
        return self._last.sick

    def jobs(self) -> Sequence[Object]:
        """Return the jobs that this process tells of."""
        return self._last.jobs


def look(
    watching: Sequence[Watching], queue: Queue, leadership: Leadership, jobs: Callable[[], Sequence[Object]]
) -> Look:
    """Look at this process. A stand-by is ready, and tells of no jobs: sums would count them twice.

    An API server that is gone is no reason for a restart: the caches go on trying, and that counts
    as a sign of life.
    """
    return Look(
        at_s=time.monotonic(),
        unready=_unready(watching),
        sick=_silent(watching) or _stuck(queue, leadership),
        jobs=jobs() if leadership.held else (),
    )


def _unready(watching: Sequence[Watching]) -> str | None:
    missing = [each.kind for each in watching if not each.synced.is_set()]
    return f"not yet listed: {', '.join(missing)}" if missing else None


def _silent(watching: Sequence[Watching]) -> str | None:
    for each in watching:
        if (silent_s := each.silent_s()) > _MAX_SILENCE_S:
            return f"the watch of {each.kind} has not moved for {silent_s:.0f} s"
    return None


def _stuck(queue: Queue, leadership: Leadership) -> str | None:
    stuck_s = queue.stuck_s() if leadership.held else 0.0
    return f"jobs wait, and no pass has ended for {stuck_s:.0f} s" if stuck_s > _MAX_WAIT_S else None


@contextlib.contextmanager
def answering(vitals: Vitals, export: Export, address: str, port: int) -> Iterator[int]:
    """Answer probes and scrapes for the block, from a thread; gives the port. Raises OSError if it cannot listen."""
    server = _Server(_application(vitals, export), address, port)
    thread = threading.Thread(target=server.run, name="probes", daemon=True)
    thread.start()
    try:
        yield server.listening.result()
    finally:
        server.stop()
        thread.join(_JOIN_S)


def _application(vitals: Vitals, export: Export) -> web.Application:
    # A thread of its own again: a scrape of thousands of jobs takes longer than a probe may.
    renderer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def healthz(_: web.Request) -> web.Response:
        problem = vitals.sick()
        return web.Response(text=problem or "ok", status=_SICK if problem else 200)

    async def readyz(_: web.Request) -> web.Response:
        problem = vitals.unready()
        return web.Response(text=problem or "ok", status=_NOT_READY if problem else 200)

    async def metrics(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
        parts = await asyncio.get_running_loop().run_in_executor(renderer, export, vitals.jobs())
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    return application


class _Server:
    """Serves an application from the thread that calls `run`, until another calls `stop`."""

    def __init__(self, application: web.Application, address: str, port: int) -> None:
        self._application, self._address, self._port = application, address, port
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self.listening = concurrent.futures.Future[int]()  # the port, once it listens

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._ending.set)

    async def _serve(self) -> None:
        runner = web.AppRunner(self._application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._address, self._port).start()
        except OSError as error:
            self.listening.set_exception(error)
        else:
            _log.info("serving", addresses=[str(address) for address in runner.addresses])
            self.listening.set_result(runner.addresses[0][1])
            await self._ending.wait()
        finally:
            await runner.cleanup()
