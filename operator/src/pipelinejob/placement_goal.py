"""Weighs a short step against the room that is left for the next job.

Of a level the room left is the most stages that still fit into one of its domains: the largest next job that could
stand there undivided. A domain keeps so much room if the chain takes no more than the rest of it, so the largest next
job is looked for keeper by keeper: which domain, limited to how few stages, still lets a chain exist within the budget?
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipelinejob.objective import Objective
from pipelinejob.placement_like import Found, Limits
from pipelinejob.prices import Path

_KEEPERS = 6  # domains of one level that are tried, the largest first


class Placer(Protocol):
    """Finds chains, and knows what there is room for."""

    def least(self, *, depth: int, limits: Limits | None = None) -> Found | None:
        """Give the cheapest chain within one domain of a depth or deeper that it finds under the limits."""

    def rooms(self, depth: int) -> Mapping[Path, int]:
        """Give the room of each domain of a depth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is looked for: `slack` is what a chain may cost above the least, for the room that it leaves."""

    objective: Objective
    slack: float
    num_levels: int

    def chain(self, placer: Placer, depth: int) -> Found | None:
        """Give the chain that serves best within one domain of a depth or deeper; None if none was found."""
        least = placer.least(depth=depth)
        if least is None:
            return None
        search = _Search(placer, depth, least)
        if self.objective is Objective.PACK:
            for level in range(1, self.num_levels - 1):  # all but the closest domains, and the nodes
                search.keep(level, budget=float("inf"))
            search.keep(self.num_levels - 1, budget=search.best.cost)
            return search.best
        budget = least.cost + (self.slack if self.objective is Objective.AUTO else 0.0)
        for level in range(1, self.num_levels + 1):
            search.keep(level, budget=budget)
        return search.best


class _Search:
    """Keeps room free level by level, each within what those before it left."""

    def __init__(self, placer: Placer, depth: int, least: Found) -> None:
        self.best = least
        self._placer = placer
        self._depth = depth
        self._limits: dict[Path, int] = {}

    def keep(self, level: int, *, budget: float) -> None:
        """Leave the largest room there can be in one domain of a level, at no more than the budget."""
        rooms = self._placer.rooms(level)
        ordered = sorted(rooms, key=lambda path: (-rooms[path], path))
        taken = self.best.taken(level)
        keeper = max(ordered, key=lambda path: rooms[path] - taken[path])
        most = rooms[keeper] - taken[keeper]
        for path in ordered[:_KEEPERS]:
            if rooms[path] <= most:
                break
            least_taken = self._least_taken(path, rooms[path] - most - 1, budget)
            if least_taken is not None:
                keeper, most = path, rooms[path] - least_taken
        self._limits[keeper] = min(rooms[keeper] - most, self._limits.get(keeper, rooms[keeper]))

    def _least_taken(self, path: Path, most: int, budget: float) -> int | None:
        """Give the fewest stages, of `most`, with which the domain lets a chain exist; None if not even these do."""
        if self._try(path, 0, budget):
            return 0
        most = min(most, len(self.best.paths) - 1)
        if most < 1 or not self._try(path, most, budget):
            return None
        fewer, enough = 0, most
        while enough - fewer > 1:
            middle = (fewer + enough) // 2
            if self._try(path, middle, budget):
                enough = middle
            else:
                fewer = middle
        return enough

    def _try(self, path: Path, taken: int, budget: float) -> bool:
        found = self._placer.least(depth=self._depth, limits={**self._limits, path: taken})
        if found is None or found.cost > budget:
            return False
        self.best = found
        return True
