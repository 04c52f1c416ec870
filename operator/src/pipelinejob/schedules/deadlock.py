"""Where ranks wait for each other for ever, whatever anything costs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelinejob.schedules.timetable import Jobs

RECEIVES_AHEAD = 2  # as the trainer's links have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """A rank that never reaches its list's end, and the job at which it waits to start or to send."""

    rank: int
    job: int
    is_sending: bool


def deadlock(
    jobs: Jobs,
    lists: Sequence[Sequence[int]],
    channel_of: Sequence[int],
    *,
    ahead: float = RECEIVES_AHEAD,
    never: frozenset[int] = frozenset(),
) -> Stuck | None:
    """Return the first rank that is stuck, None where all lists are played to their ends.

    A message leaves once fewer than `ahead` messages of its channel are on their way to the jobs
    that take them; with infinitely many it leaves at once. Messages of a channel are taken in any
    order; channel -1 stands for what stays on its rank. Jobs in `never` cannot start.
    """
    progress = _Progress(jobs, lists, channel_of, ahead, never)
    awake = list(range(len(lists)))
    while awake:
        awake += progress.advance(awake.pop())
    return progress.first_stuck()


class _Progress:
    """How far each rank is in its list, and which messages are on their way."""

    def __init__(
        self,
        jobs: Jobs,
        lists: Sequence[Sequence[int]],
        channel_of: Sequence[int],
        ahead: float,
        never: frozenset[int],
    ) -> None:
        self._jobs, self._lists, self._channel_of, self._ahead = jobs, lists, channel_of, ahead
        self._unmet = [int(source >= 0) for source in jobs.source]  # what each job still waits for
        for job in never:
            self._unmet[job] += 1
        self._travelling = [0] * (max(channel_of, default=-1) + 1)
        self._position, self._is_sending = [0] * len(lists), [False] * len(lists)

    def first_stuck(self) -> Stuck | None:
        for rank, order in enumerate(self._lists):
            if self._position[rank] < len(order):
                return Stuck(rank=rank, job=order[self._position[rank]], is_sending=self._is_sending[rank])
        return None

    def advance(self, rank: int) -> list[int]:
        """Play a rank as far as it goes; return the ranks that may go on thereby."""
        order = self._lists[rank]
        woken: list[int] = []
        while self._position[rank] < len(order):
            job = order[self._position[rank]]
            if not self._is_sending[rank]:
                if self._unmet[job]:
                    break
                woken += self._take(job)
            self._is_sending[rank] = not self._has_left(job, woken)
            if self._is_sending[rank]:
                break
            self._position[rank] += 1
        return woken

    def _take(self, job: int) -> Iterator[int]:
        """Take the message that a job waited for.

        Yields its sender if that waits to send the next one.
        """
        sender = self._jobs.source[job]
        if sender >= 0 and self._channel_of[sender] >= 0:
            self._travelling[self._channel_of[sender]] -= 1
            if self._is_sending[self._jobs.rank_of[sender]]:
                yield self._jobs.rank_of[sender]

    def _has_left(self, job: int, woken: list[int]) -> bool:
        """Let a job's message leave if its channel has room for it, and wake its receiver."""
        receiver, channel = self._jobs.target[job], self._channel_of[job]
        if receiver < 0:
            return True
        if channel >= 0:
            if self._travelling[channel] >= self._ahead:
                return False
            self._travelling[channel] += 1
            woken.append(self._jobs.rank_of[receiver])
        self._unmet[receiver] -= 1
        return True
