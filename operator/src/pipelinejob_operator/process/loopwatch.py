"""How late the event loop is, and who holds it: all passes, watches and the Lease share the one loop of this process.

A task of the loop asks to be woken ten times a second and measures how late it is. A thread beside
it looks whether that task still moves, and writes down what the loop's thread is doing when it has
not for a second.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

_log = structlog.get_logger(__name__)

_TICK_S = 0.1
_HELD_S = 1.0  # from here on the holder is named in the log
_LOOK_S = 0.25
RECENT_S = 60.0
_MAX_FRAMES = 12  # the innermost; the outer ones are asyncio's own


class LoopMetrics(Protocol):
    """Where the lag is counted."""

    def loop_lag(self, seconds: float, *, worst_s: float) -> None:
        """Take how late the loop was this time, and the worst of the last RECENT_S."""


class LoopWatch:
    """Watches the event loop in which `run` runs."""

    def __init__(
        self, metrics: LoopMetrics, *, on_tick: Callable[[], None] = lambda: None, held_s: float = _HELD_S
    ) -> None:
        """Prepare; `on_tick` is called ten times a second, from the event loop."""
        self._metrics = metrics
        self._on_tick = on_tick
        self._held_s = held_s
        self._ticked_s = time.monotonic()
        self._recent: deque[tuple[float, float]] = deque()  # when, and how late; each later than all behind it
        self._stopping = threading.Event()

    async def run(self) -> None:
        """Measure until cancelled."""
        self._ticked_s = time.monotonic()
        held = threading.current_thread()
        # A daemon: it looks on, and nothing waits for it when the process ends.
        threading.Thread(target=self._look, args=(held.ident,), name="loop-watch", daemon=True).start()
        try:
            while True:
                await asyncio.sleep(_TICK_S)
                self._tick(time.monotonic())
        finally:
            self._stopping.set()

    def _tick(self, now_s: float) -> None:
        lag_s = max(0.0, now_s - self._ticked_s - _TICK_S)
        self._ticked_s = now_s
        while self._recent and self._recent[-1][1] <= lag_s:
            self._recent.pop()
        self._recent.append((now_s, lag_s))
        while self._recent[0][0] < now_s - RECENT_S:
            self._recent.popleft()
        self._metrics.loop_lag(lag_s, worst_s=self._recent[0][1])
        self._on_tick()
        if lag_s >= self._held_s:
            _log.warning("the event loop was held", seconds=round(lag_s, 3))

    def _look(self, thread: int | None) -> None:
        """Name what holds the loop, once for each time that it is held."""
        named_s = 0.0  # the tick after which the holder was named
        while not self._stopping.wait(min(_LOOK_S, self._held_s / 2)):
            ticked_s = self._ticked_s
            held_s = time.monotonic() - ticked_s - _TICK_S
            if held_s < self._held_s or ticked_s == named_s:
                continue
            named_s = ticked_s
            frame = sys._current_frames().get(thread or 0)  # noqa: SLF001  # the one way to another thread's stack
            stack = traceback.format_stack(frame)[-_MAX_FRAMES:] if frame else []
            _log.warning("the event loop is held", seconds=round(held_s, 3), stack="".join(stack))
