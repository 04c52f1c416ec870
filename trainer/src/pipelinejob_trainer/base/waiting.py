"""For whom this process's training waits at this moment: what is asked of it where nothing goes on any more.

One thread trains, so that there is one answer; other threads read it.
"""

import time
from typing import NamedTuple


class Waiting(NamedTuple):
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


class Awaiting:
    """What is done inside `with` ends only once a rank has done its part, or all of a group for None.

    A class and no generator: two are entered for each action.
    """

    __slots__ = ("_before", "_peer")

    def __init__(self, peer: int | None) -> None:
        self._peer = peer
        self._before: Waiting | None = None

    def __enter__(self) -> None:
        global _now  # one of a process, as said above
        self._before, _now = _now, Waiting(self._peer, time.monotonic())

    def __exit__(self, *_: object) -> None:
        global _now  # noqa: PLW0603  # as above
        _now = self._before
