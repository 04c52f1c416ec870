"""Whose request goes to the API server next: a rate, so many at once, and turns between jobs that have several waiting.

A gang of 2,048 pods has thousands of writes to make. Served in the order of their coming, they
would keep every other job's status waiting; here each job that waits sends one request, then the
next job does.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

MAX_HOLD_S = 10.0  # however long an API server asks to be left alone: a wrong header must not stop the operator
_MAX_AT_ONCE = 48


@dataclass(frozen=True, slots=True)
class _Caller:
    key: Hashable
    is_background: bool


_NOBODY = _Caller("", is_background=False)
_caller: ContextVar[_Caller] = ContextVar("caller", default=_NOBODY)


@contextlib.contextmanager
def on_behalf_of(key: Hashable, *, is_background: bool = False) -> Iterator[None]:
    """Let the requests made within take turns under this key, those of tasks that are begun within included.

    What runs in the background goes only when nothing else waits.
    """
    token = _caller.set(_Caller(key, is_background))
    try:
        yield
    finally:
        _caller.reset(token)


class Pace:
    """Hands out turns: a token bucket of `burst` that fills by `qps` a second, and a bound on requests at once.

    It belongs to one event loop. A `qps` of 0 means no rate.
    """

    def __init__(self, *, qps: float = 0.0, burst: int = 1, max_at_once: int = _MAX_AT_ONCE) -> None:
        self._loop = asyncio.get_running_loop()
        self._qps, self._burst, self._max_at_once = qps, float(burst), max_at_once
        self._tokens, self._filled_s = self._burst, self._loop.time()
        self._at_once = 0
        self._held_until_s = 0.0
        # Foreground and background; in each, the keys in the order in which they have their next
        # turn.
        self._lines: tuple[dict[Hashable, deque[asyncio.Future[None]]], ...] = ({}, {})
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Wait for a turn, and keep the place among those at once until the block ends."""
        await self._join()
        try:
            yield
        finally:
            self._at_once -= 1
            self._serve()

    def hold(self, seconds: float) -> None:
        """Hand out no turns for so long, at most MAX_HOLD_S: the API server asked for it."""
        self._held_until_s = max(self._held_until_s, self._loop.time() + min(seconds, MAX_HOLD_S))

    async def held(self) -> None:
        """Wait until nothing is held back any more, without taking a turn."""
        while (left_s := self._held_until_s - self._loop.time()) > 0:  # noqa: ASYNC110  # until a time, which may move
            await asyncio.sleep(left_s)

    async def _join(self) -> None:
        caller = _caller.get()
        turn = self._loop.create_future()
        self._lines[caller.is_background].setdefault(caller.key, deque()).append(turn)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in the same moment in which the turn came: another must have it.
            if turn.done() and not turn.cancelled():
                self._at_once -= 1
                self._serve()
            raise

    def _serve(self) -> None:
        """Hand out turns as far as rate and bound allow; come back when the rate allows more."""
        self._refill()
        while self._at_once < self._max_at_once and any(self._lines):
            wait_s = self._wait_s()
            if wait_s > 0:
                self._timer = self._timer or self._loop.call_later(wait_s, self._on_time)
                return
            turn = self._next()
            if turn is None:
                return
            self._at_once += 1
            self._tokens -= 1
            turn.set_result(None)

    def _on_time(self) -> None:
        self._timer = None
        self._serve()

    def _next(self) -> asyncio.Future[None] | None:
        for line in self._lines:
            while line:
                key = next(iter(line))
                waiting = line.pop(key)
                turn = waiting.popleft()
                if waiting:
                    line[key] = waiting  # behind all other keys
                if not turn.done():  # its caller has not given up
                    return turn
        return None

    def _refill(self) -> None:
        now_s = self._loop.time()
        self._tokens = min(self._burst, self._tokens + (now_s - self._filled_s) * self._qps)
        self._filled_s = now_s

    def _wait_s(self) -> float:
        """Return the seconds until rate and hold allow another turn."""
        held_s = self._held_until_s - self._loop.time()
        lacking_s = (1 - self._tokens) / self._qps if self._qps else 0.0
        return max(held_s, lacking_s)
