"""For whom this process's training waits at this moment: what is asked of it where nothing goes on any more.

One thread trains in a process of its own; where several wait, the one that has waited longest is
told.
"""

import time
from threading import get_ident
from typing import NamedTuple


class Waiting(NamedTuple):
    """A wait that has not ended."""

    peer: int | None  # the rank; None: all of a group
    began: float  # seconds, of the monotonic clock

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self.began


_innermost: dict[int, Waiting] = {}  # by thread; others read it


def waits_for() -> Waiting | None:
    """Return the wait that goes on now; None if this process waits for nobody."""
    return min(_innermost.copy().values(), key=lambda wait: wait.began, default=None)


class Awaiting:
    """What is done inside `with` ends only once a rank has done its part, or all of a group for None.

    A class and no generator: two are entered for each action.
    """

    __slots__ = ("_outer", "_peer", "_thread")

    def __init__(self, peer: int | None) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        self._thread = get_ident()
        self._outer = _innermost.get(self._thread)
        _innermost[self._thread] = Waiting(self._peer, time.monotonic())

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            del _innermost[self._thread]
        else:
            _innermost[self._thread] = self._outer
