"""For whom this process's training waits at this moment: what is asked of it where nothing goes on any more.

One thread trains, so that there is one answer; other threads read it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A wait that has not ended."""

    peer: int | None  # the rank; None: all of a group
    began: float  # seconds, of the monotonic clock

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self.began


_now: Waiting | None = None


def waits_for() -> Waiting | None:
    """Return the wait that goes on now; None if this process waits for nobody."""
    return _now


@contextmanager
def awaiting(peer: int | None) -> Iterator[None]:
    """Note that what is done inside ends only once a rank has done its part, or all of a group for None."""
    global _now  # noqa: PLW0603  # one of a process, as said above
    before, _now = _now, Waiting(peer, time.monotonic())
    try:
        yield
    finally:
        _now = before
