"""Jobs whose status does not say yet why they wait, told a few each second: they are many, and reasons change often."""

import time
from collections.abc import Callable, Iterator
from typing import Final

from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.objects.job import Job

_PER_S: Final = 25.0
_AT_ONCE: Final = 50.0


class Untold:
    """Whom to wake so that a pass writes why its job waits; those that say nothing yet come first, then the head."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._uids: dict[str, None] = {}
        self._tokens, self._filled = _AT_ONCE, time.monotonic()

    def __bool__(self) -> bool:
        """Whether any job is still to be told."""
        return bool(self._uids)

    def add(self, uid: str) -> None:
        """Take note that a job waits for another reason than before."""
        self._uids[uid] = None

    def discard(self, uid: str) -> None:
        """Let go of a job that does not wait, if it was noted."""
        self._uids.pop(uid, None)

    def clear(self) -> None:
        """Let go of all."""
        self._uids.clear()

    def take(self, is_untold: Callable[[Job], bool]) -> Iterator[Key]:
        """Name those whose turn it is now, as long as the budget lasts; whose status says it already costs nothing."""
        now = time.monotonic()
        self._tokens = min(_AT_ONCE, self._tokens + (now - self._filled) * _PER_S)
        self._filled = now
        for uid in sorted(self._uids, key=self._turn):
            if self._tokens < 1:
                return
            del self._uids[uid]
            job = self._room.job(uid)
            if job is not None and is_untold(job):
                self._tokens -= 1
                yield job.key

    def _turn(self, uid: str) -> tuple[bool, bool, object]:
        """What sorts those who are to be told: who stands in no line, who was never told anything, the head."""
        place, job = self._room.place(uid), self._room.job(uid)
        if place is None or job is None:
            return (False, False, ())
        return (True, job.status.state is not None, place)
