"""Trades a short step against the room left for the next job.

Of a level the room left is the most stages that still fit into one of its domains: the largest
next job that could stand there undivided. A domain keeps so much room if the chain takes no more
than the rest of it, so the largest next job is looked for keeper by keeper: which domain, limited
to how few stages, still lets a chain exist within the budget?
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import inf

from pipelinejob.placement.found import Found, Placer
from pipelinejob.placement.prices import Path
from pipelinejob.spec.network.objective import Objective

_KEEPERS = 6  # domains of one level that are tried, the largest first
_BRANCHES = 4  # ways to leave the same room that are followed further
_EFFORT = 1500  # stages that are placed in trying; a long chain is tried less often than a short one
_FEWEST_TRIES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The objective of a search: a chain may cost `slack` seconds above the least if it leaves more room.

    Without an objective the cost alone counts, and ties break arbitrarily.
    """

    objective: Objective | None
    slack: float
    num_levels: int
    num_packed: int  # levels whose room is kept whatever that costs, where the tightest domains are wanted

    def chain(self, placer: Placer, depth: int) -> Found | None:
        """Return the best chain within one domain of a depth or deeper; None if none was found."""
        least = placer.least(depth=depth)
        if least is None or self.objective is None:
            return least
        search = _Search(placer, depth, least)
        if self.objective is Objective.PACK:
            for level in range(1, min(self.num_packed, self.num_levels) + 1):
                search.keep(level, budget=inf)
            if self.num_packed < self.num_levels:
                search.keep(self.num_packed + 1, budget=search.best.cost + placer.ties_s)
            return search.best
        slack = self.slack if self.objective is Objective.AUTO else 0.0
        for level in range(1, self.num_levels + 1):
            search.keep(level, budget=least.cost + slack + placer.ties_s)
        return search.best


@dataclass(frozen=True, slots=True)
class _Branch:
    """Limits that keep the room reserved so far, and the cheapest chain under them."""

    limits: Mapping[Path, int]
    found: Found


class _Search:
    """Reserves room level by level, each within the limits of the levels before it."""

    def __init__(self, placer: Placer, depth: int, least: Found) -> None:
        self._placer = placer
        self._depth = depth
        self._branches = [_Branch({}, least)]
        self._num_stages = len(least.paths)
        self._tries = max(_FEWEST_TRIES, _EFFORT // self._num_stages)

    @property
    def best(self) -> Found:
        """The cheapest chain that leaves the reserved room."""
        return self._branches[0].found

    def keep(self, level: int, *, budget: float) -> None:
        """Reserve the largest possible room in one domain of a level, at a cost within the budget."""
        rooms = self._placer.rooms(level)
        largest = nsmallest(_KEEPERS + self._num_stages, rooms, key=lambda path: (-rooms[path], path))
        kept = [each for branch in self._branches for each in self._kept(branch, level, rooms, largest, budget)]
        most = max((room for room, _ in kept), default=0)
        branches: dict[tuple[tuple[Path, int], ...], _Branch] = {}
        for room, branch in kept:
            if room == most:
                branches.setdefault(tuple(sorted(branch.limits.items())), branch)
        # Of equals those come first that were found first: what stood there already, which is
        # first by name.
        self._branches = sorted(branches.values(), key=lambda each: each.found.cost)[:_BRANCHES] or self._branches

    def _kept(
        self, branch: _Branch, level: int, rooms: Mapping[Path, int], largest: Sequence[Path], budget: float
    ) -> Iterator[tuple[int, _Branch]]:
        """Yield the ways in which this branch leaves the most room, each with that room."""
        taken = branch.found.taken(level)
        most = max((rooms[path] - taken[path] for path in largest), default=0)
        natural = [path for path in largest if rooms[path] - taken[path] == most]
        for path in natural[:_BRANCHES]:  # as it stands, the chain leaves that much there
            yield most, _limited(branch, path, taken[path], branch.found)
        for path in largest[:_KEEPERS]:
            for room, found in self._more(branch, path, rooms[path], most + (path in natural), budget):
                most = room
                yield room, _limited(branch, path, rooms[path] - room, found)

    def _more(self, branch: _Branch, path: Path, room: int, least: int, budget: float) -> Iterator[tuple[int, Found]]:
        """Yield chains that leave a domain at least so much room, by bisection, each more than the last."""
        fewest, enough = 0, min(room - least, self._num_stages)
        tried = fewest
        while fewest <= enough:
            found = self._try(branch, path, tried, budget)
            if found is not None:
                yield room - tried, found
                enough = tried - 1
            else:
                fewest = tried + 1
            tried = (fewest + enough) // 2

    def _try(self, branch: _Branch, path: Path, taken: int, budget: float) -> Found | None:
        if self._tries <= 0:
            return None
        self._tries -= 1
        found = self._placer.least(depth=self._depth, limits={**branch.limits, path: taken}, within=budget)
        return found if found is not None and found.cost <= budget else None


def _limited(branch: _Branch, path: Path, most: int, found: Found) -> _Branch:
    limits = {**branch.limits, path: min(most, branch.limits.get(path, most))}
    return _Branch(limits, found)
