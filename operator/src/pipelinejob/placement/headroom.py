"""Headroom: the most ranks that still fit into one domain of each level after a placement."""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

from pipelinejob.placement.prices import Path


@dataclass(frozen=True, slots=True, order=True)
class Largest:
    """The domain of a level with the most room."""

    room: int
    path: Path


class Headroom:
    """The room of every domain before a job is placed, from which the room after it follows."""

    def __init__(self, rooms: Mapping[Path, int], *, num_levels: int, num_ranks: int) -> None:
        """Add up each node's room by domain; at most `num_ranks` ranks will take some of it."""
        self._totals: list[dict[Path, int]] = [{} for _ in range(num_levels)]
        for path, room in rooms.items():
            for level, totals in enumerate(self._totals, start=1):
                domain = path[:level]
                totals[domain] = totals.get(domain, 0) + room
        # Beside those that ranks stand in, one domain more is enough to know the largest of the
        # others.
        self._largest = [
            nsmallest(num_ranks + 1, ((-room, domain) for domain, room in totals.items())) for totals in self._totals
        ]

    def after(self, taken: Mapping[Path, int]) -> tuple[Largest, ...]:
        """Return the domain with the most room of each level after nodes have lost so much of theirs."""
        return tuple(self._after(level, taken) for level in range(1, len(self._totals) + 1))

    def _after(self, level: int, taken: Mapping[Path, int]) -> Largest:
        totals = self._totals[level - 1]
        lost: dict[Path, int] = {}
        for path, room in taken.items():
            lost[path[:level]] = lost.get(path[:level], 0) + room
        untouched = islice((domain for _, domain in self._largest[level - 1] if domain not in lost), 1)
        candidates = [Largest(totals[domain] - lost.get(domain, 0), domain) for domain in (*untouched, *lost)]
        return max(candidates, key=lambda each: each.room, default=Largest(0, ()))
