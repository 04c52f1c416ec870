"""Ranks that are asked to stop while others stay: who they are, and who holds their state then. Decided purely.

A SIGTERM reaches one rank, or those of a node (a drain, a spot notice), or one after the other all
of them (a suspension, a job that is deleted). In the last case all write a checkpoint and stop, in
the others only those few leave. So the ranks look until for a moment no further one was asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LOOK_S = 0.1
_QUIET_LOOKS = 10  # in which no further rank was asked: a second
_HOLDERS = 2  # of each state: one may be lost
_HURRY_S = 5.0  # of the grace of one that leaves: then there is no more time to look


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """Which of a gang's ranks leave after a step."""

    ranks: frozenset[int]
    size: int  # of the gang

    @property
    def is_all(self) -> bool:
        """Whether nobody stays."""
        return len(self.ranks) == self.size

    @property
    def is_some(self) -> bool:
        """Whether some leave and others stay."""
        return bool(self.ranks) and not self.is_all


def who_leaves(looks: Sequence[Sequence[float]]) -> Leaving | None:
    """Return who leaves; None if the ranks are to look again.

    Each look has for each rank the seconds of grace that it has left, infinitely many if it was
    not asked to stop.
    """
    asked = [frozenset(rank for rank, left_s in enumerate(look) if left_s != float("inf")) for look in looks]
    found = Leaving(ranks=asked[-1], size=len(looks[-1]))
    is_quiet = len(looks) > _QUIET_LOOKS and asked[-1 - _QUIET_LOOKS] == asked[-1]
    return found if found.is_all or is_quiet or min(looks[-1]) < _HURRY_S else None


def entrusted(
    stay: Sequence[int], *, size: int, num_stages: int, buddies: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return who gives his state to whom, so that each is with two of those that stay, or with the only one.

    A state is with all ranks of its stage, and with their buddies, where there are any.
    """
    pairs = []
    for stage in range(num_stages):
        own = range(stage, size, num_stages)
        has = {rank for rank in stay if rank in own or (buddies and rank in {buddies[each] for each in own})}
        giver = next((rank for rank in own if rank in stay), stage)
        later = [*(rank for rank in stay if rank > giver), *(rank for rank in stay if rank < giver)]
        lacking = [rank for rank in later if rank not in has]
        pairs += [(giver, keeper) for keeper in lacking[: max(0, _HOLDERS - len(has))]]
    return tuple(pairs)


def keepers(leaving: Leaving, *, num_stages: int, buddies: Sequence[int]) -> Mapping[int, int]:
    """Return, for each rank that leaves and whose state no rank that stays has, which one is to be sent it.

    A rank's state is with the same stage of the other replicas, or with its buddy. Else the next
    rank that stays gets it.
    """
    stay = [rank for rank in range(leaving.size) if rank not in leaving.ranks]
    return {
        rank: next((each for each in stay if each > rank), stay[0])
        for rank in sorted(leaving.ranks)
        if not any(each % num_stages == rank % num_stages or (buddies and buddies[rank] == each) for each in stay)
    }
