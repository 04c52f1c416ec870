"""The line itself: who stands in it, sorted by rank."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from pipelinejob_operator.admission.line.queueing import Rank


class Line:
    """Jobs by uid, first first; one that comes or goes costs no sorting of the others."""

    def __init__(self) -> None:
        self._sorted: list[tuple[Rank, str]] = []
        self._ranks: dict[str, Rank] = {}

    def __len__(self) -> int:
        """How many stand in line."""
        return len(self._sorted)

    def __contains__(self, uid: str) -> bool:
        """Whether a job stands in line."""
        return uid in self._ranks

    @property
    def uids(self) -> Sequence[str]:
        """All in line, as they stand now."""
        return [uid for _, uid in self._sorted]

    def rank(self, uid: str) -> Rank | None:
        """Where a job stands; None if it does not."""
        return self._ranks.get(uid)

    def enter(self, uid: str, rank: Rank) -> None:
        """Put a job that does not stand in line where its rank is."""
        insort(self._sorted, (rank, uid))
        self._ranks[uid] = rank

    def leave(self, uid: str) -> bool:
        """Take a job out; tell whether it stood in line."""
        rank = self._ranks.pop(uid, None)
        if rank is None:
            return False
        del self._sorted[bisect_left(self._sorted, (rank, uid))]
        return True
