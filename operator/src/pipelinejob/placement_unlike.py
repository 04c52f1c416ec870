"""Places a chain of unlike stages by a bounded search.

Stages may differ in what they ask for and in which nodes they may go to, so that a domain's room is no single number
and the exact method of like stages does not apply; where several ranks share a node the question is bin packing. The
bounded search of `placement_search.py` does it.

Of a large cluster the closest domains that may hold the chain are searched, at each level the tightest `_DOMAINS`, and
in each of them the `_LEAVES` that can take the longest runs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, groupby

from pipelinejob.placement_like import Found, Limits
from pipelinejob.placement_room import Demand, Room, Seats, kinds_of
from pipelinejob.placement_search import ChainSearch
from pipelinejob.prices import Path, Prices
from pipelinejob.topology import Topology

_INFINITE = float("inf")
_DOMAINS = 4
_LEAVES = 128
_EFFORT = 8_000  # stages looked at by one search: a few hundredths of a second
_LEAST_BUDGET = 100  # leaves tried
_LATER, _LATER_LEAST = 20, 30  # times less for each further search for a chain that leaves more room


class UnlikeStages:
    """Chains of stages of several kinds."""

    def __init__(
        self, topology: Topology, demands: Sequence[Demand], room: Room, prices: Prices, *, share: float = 1.0
    ) -> None:
        """Take what to place, and which share of the usual effort may be spent."""
        self._demands = demands
        self._room = room
        self._prices = prices
        self._num_levels = prices.num_depths - 1
        self._budget = max(_LEAST_BUDGET, int(share * _EFFORT / len(demands)))
        self._is_first = True
        self._kinds = kinds_of(demands)
        self._kind_of = [next(i for i, kind in enumerate(self._kinds) if kind.is_like(each)) for each in demands]
        self._wanted = Counter(self._kind_of)
        self._counts = self._counted(topology)
        pairs = combinations_with_replacement(self._kinds, 2)
        self._seats = Seats(demands, self._kind_of, self._counts) if room.parts_all(pairs) else None
        places = [sum(counts) for counts in zip(*self._counts.values(), strict=True)] or [0]
        self._scarcest = places.index(min(places))

    def _counted(self, topology: Topology) -> dict[Path, tuple[int, ...]]:
        """Give how many stages of each kind each node could take, were it for that kind alone."""
        by_kind = [self._room.counts(kind, most=len(self._demands)) for kind in self._kinds]
        names = sorted(set().union(*by_kind), key=topology.paths.__getitem__)
        return {topology.paths[name]: tuple(counts.get(name, 0) for counts in by_kind) for name in names}

    def rooms(self, depth: int) -> dict[Path, int]:
        """Give the room of each domain of a depth for stages of the kind that finds the fewest places."""
        rooms: dict[Path, int] = {}
        for path, counts in self._counts.items():
            rooms[path[:depth]] = rooms.get(path[:depth], 0) + counts[self._scarcest]
        return rooms

    @property
    def ties_s(self) -> float:
        """Give what tie-breaks add to a chain's cost: there are none."""
        return 0.0

    def least(self, *, depth: int, limits: Limits | None = None, within: float = _INFINITE) -> Found | None:
        """Give the cheapest chain within one domain of a depth or deeper that the search finds."""
        limits = limits or {}
        best: Found | None = None
        for domain in self._domains(depth, limits):
            search = ChainSearch(self._nodes_in(domain), self._demands, self._seats or self._room, self._prices, limits)
            if search.least_s > within or (best is not None and search.least_s >= best.cost):
                continue
            found = search.best_chain(self._budget, below=_INFINITE if best is None else best.cost)
            if found is None and best is None and self._is_first:
                found = search.scarcest_first(self._budget)
            best = found or best
        if self._is_first:  # what follows asks again under limits, and has a chain to fall back to
            self._is_first, self._budget = False, max(_LATER_LEAST, self._budget // _LATER)
        return best

    def _domains(self, depth: int, limits: Limits) -> Iterator[Path]:
        """Give the domains that may hold the chain, the closest first, of each level the tightest."""
        for level in range(self._num_levels, depth - 1, -1):
            rooms: dict[Path, list[int]] = {}
            for path, counts in self._counts.items():
                if any(path[: len(limit)] == limit and not most for limit, most in limits.items()):
                    continue
                room = rooms.setdefault(path[:level], [0] * len(self._kinds))
                for kind, count in enumerate(counts):
                    room[kind] += count
            fitting = (
                (max(room), path)
                for path, room in rooms.items()
                if all(room[kind] >= wanted for kind, wanted in self._wanted.items())
            )
            for _, path in sorted(fitting)[: None if level == depth else _DOMAINS]:
                yield path

    def _nodes_in(self, domain: Path) -> dict[Path, tuple[int, ...]]:
        """Give the nodes of the domain's leaves that can take the longest runs."""
        inside = {path: counts for path, counts in self._counts.items() if path[: len(domain)] == domain}
        leaves = {leaf: list(nodes) for leaf, nodes in groupby(inside, key=lambda path: path[:-1])}
        if len(leaves) <= _LEAVES:
            return inside
        best = sorted(leaves, key=lambda leaf: (-sum(sum(inside[node]) for node in leaves[leaf]), leaf))[:_LEAVES]
        return {node: inside[node] for leaf in sorted(best) for node in leaves[leaf]}
