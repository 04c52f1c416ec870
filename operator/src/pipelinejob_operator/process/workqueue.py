"""A queue of keys with the semantics of client-go's.

A key waits once however often it is added, and is never handed out twice at a time; one that is
added while it is being worked on comes again afterwards.

It belongs to one event loop; other threads add through `loop.call_soon_threadsafe(queue.add,
key)`.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

BASE_DELAY_S = 0.005
MAX_DELAY_S = 300.0


class QueueMetrics(Protocol):
    """What the queue tells of itself."""

    def depth(self, depth: int) -> None:
        """Take the number of keys that wait."""

    def added(self) -> None:
        """Take note of a key that is to be worked on."""

    def waited(self, seconds: float) -> None:
        """Take how long the key just handed out had waited."""

    def retried(self) -> None:
        """Take note of a key that comes again because its pass failed."""


class WorkQueue(Generic[KeyT]):
    """Keys to work on, each at most once in the queue and at most once in work."""

    def __init__(self, *, metrics: QueueMetrics | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._order: deque[KeyT] = deque()
        self._urgent: deque[KeyT] = deque()  # handed out before all others
        self._is_urgent: set[KeyT] = set()
        self._dirty: dict[KeyT, float] = {}  # key -> since when it waits
        self._processing: set[KeyT] = set()
        self._delayed: dict[KeyT, asyncio.TimerHandle] = {}
        self._failures: dict[KeyT, int] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._last_done_s = self._loop.time()

    def __len__(self) -> int:
        return len(self._dirty) - sum(key in self._dirty for key in self._processing)

    def stuck_s(self) -> float:
        """How long no key was given back, nor any was waiting: 0 if none waits."""
        return min(self.oldest_s(), self._loop.time() - self._last_done_s)

    def oldest_s(self) -> float:
        """How long the first key in the queue has waited, 0 if there is none."""
        now, waited = self._loop.time(), 0.0
        for row in (self._urgent, self._order):
            while row and row[0] not in self._dirty:  # it was handed out from the other row
                row.popleft()
            if row:
                waited = max(waited, now - self._dirty[row[0]])
        return waited

    def add(self, key: KeyT, *, is_urgent: bool = False) -> None:
        """Have the key worked on, as soon as it is not in work; if it is urgent, before all that are not."""
        if self._closed or (key in self._dirty and (not is_urgent or key in self._is_urgent)):
            return
        if key not in self._dirty and self._metrics:
            self._metrics.added()
        self._dirty.setdefault(key, self._loop.time())
        if is_urgent:
            self._is_urgent.add(key)
        if key not in self._processing:
            self._enqueue(key)

    def add_after(self, key: KeyT, delay_s: float) -> None:
        """Add the key later; of several such wishes the earliest counts."""
        if self._closed:
            return
        if delay_s <= 0:
            self.add(key)
            return
        due = self._loop.time() + delay_s
        waiting = self._delayed.get(key)
        if waiting and waiting.when() <= due:
            return
        if waiting:
            waiting.cancel()
        self._delayed[key] = self._loop.call_at(due, self._add_delayed, key)

    def retry_failed(self) -> None:
        """Add every key whose last pass failed, without its delay."""
        for key in tuple(self._failures):
            self.forget(key)
            self.add(key)

    def add_after_failure(self, key: KeyT, *, max_delay_s: float = MAX_DELAY_S) -> None:
        """Add the key after a delay that doubles with each failure since `forget`."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        if self._metrics:
            self._metrics.retried()
        # The exponent is bounded so that a key that fails for weeks does not overflow a float.
        self.add_after(key, min(BASE_DELAY_S * 2 ** min(failures, 32), max_delay_s))

    def forget(self, key: KeyT) -> None:
        """Count the key's failures from 0 again."""
        self._failures.pop(key, None)

    async def get(self) -> KeyT | None:
        """Wait for a key and take it; `done` must follow. Gives None once the queue is closed."""
        while (key := self._next()) is None and not self._closed:
            future = self._loop.create_future()
            self._waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                self._pass_on(future)
                raise
        if key is None or self._closed:
            return None
        since = self._dirty.pop(key)
        self._is_urgent.discard(key)
        self._processing.add(key)
        if self._metrics:
            self._metrics.depth(len(self))
            self._metrics.waited(self._loop.time() - since)
        return key

    def _next(self) -> KeyT | None:
        """Take the next key; one that waits in both rows is taken from the first, and passed over in the other."""
        for row in (self._urgent, self._order):
            while row:
                key = row.popleft()
                if key in self._dirty and key not in self._processing:
                    return key
        return None

    def done(self, key: KeyT) -> None:
        """Hand the key back; it comes again at once if it was added meanwhile."""
        self._processing.discard(key)
        self._last_done_s = self._loop.time()
        if key in self._dirty:
            self._enqueue(key)

    def close(self) -> None:
        """Hand out no more keys and wake whoever waits for one."""
        self._closed = True
        for handle in self._delayed.values():
            handle.cancel()
        self._delayed.clear()
        while self._waiting:
            self._wake()

    def _enqueue(self, key: KeyT) -> None:
        (self._urgent if key in self._is_urgent else self._order).append(key)
        if self._metrics:
            self._metrics.depth(len(self))
        self._wake()

    def _add_delayed(self, key: KeyT) -> None:
        del self._delayed[key]
        self.add(key)

    def _wake(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    def _pass_on(self, future: asyncio.Future[None]) -> None:
        # Cancelled in the same turn in which it was woken: another must have the key.
        if future in self._waiting:
            self._waiting.remove(future)
        elif len(self):
            self._wake()
