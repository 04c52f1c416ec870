"""Local search over layouts of a small uniform job: all replicas at once.

A layout is improved by the best single change, a rank going to a free seat or two ranks changing
theirs, until none helps. Replicas wait for their dearest chain and their dearest ring; as a change
elsewhere shows in neither, the sum of all counts second. Several layouts are begun with, and the
best end counts. That is a local search: it is held against proofs on small clusters
(tests/core/placement/test_placement_certified.py), not proved itself.

Seats of one innermost domain are alike as long as no node takes two ranks; else every node is a
place of its own.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf

from pipelinejob.placement.found import Found, Limits
from pipelinejob.placement.prices import Path, Prices
from pipelinejob.placement.replicas.layout_costs import LayoutCosts, Score, Tally

MOST_RANKS, MOST_PLACES = 16, 24  # more are left to the ways that look at one chain at a time
_MOST_STARTS = 8  # places that are filled first

_Layout = tuple[int, ...]  # each rank's place by number, replica by replica


class JointReplicas:
    """Finds layouts of a whole job as if it were one chain; a `found.Placer`."""

    def __init__(
        self, rooms: Mapping[Path, int], prices: Prices, *, num_replicas: int, starts: Iterable[Sequence[Path]]
    ) -> None:
        """Prepare the search from each node's room and some initial layouts, each the nodes of all ranks."""
        self._node_rooms = {node: room for node, room in sorted(rooms.items()) if room}
        is_shared = all(room == 1 for room in self._node_rooms.values())
        depth = prices.num_depths - 2 if is_shared else prices.num_depths - 1
        self._nodes: dict[Path, list[Path]] = {}
        for node in self._node_rooms:
            self._nodes.setdefault(node[:depth], []).append(node)
        self._places = list(self._nodes)
        self._costs = LayoutCosts.of(prices, num_replicas, self._places)
        number = {place: index for index, place in enumerate(self._places)}
        self._starts = [tuple(number[node[:depth]] for node in start) for start in starts]

    @staticmethod
    def is_for(rooms: Mapping[Path, int], *, num_ranks: int) -> bool:
        """Tell whether ranks, and domains over nodes, are few enough for this search."""
        return num_ranks <= MOST_RANKS and len({node[:-1] for node, room in rooms.items() if room}) <= MOST_PLACES

    @property
    def ties_s(self) -> float:
        """The most that rounding adds."""
        return self._costs.unit

    def rooms(self, depth: int) -> dict[Path, int]:
        """Return the room of each domain of a depth."""
        totals: Counter[Path] = Counter()
        for node, room in self._node_rooms.items():
            totals[node[:depth]] += room
        return dict(totals)

    def least(self, *, depth: int, limits: Limits | None = None, within: float = inf) -> Found | None:
        """Return the cheapest layout that is found, each replica within one domain of a depth."""
        search = _Search(self._costs, self._rooms_within(limits or {}), self._bounds(limits or {}), depth)
        ends = {search.improved(start) for start in {*self._starts, *self._packed()}} - {None}
        if not ends:
            return None
        cost, layout = min((self._costs.score(end), end) for end in ends if end is not None)
        cost_s = cost[0] * self._costs.unit
        return Found(cost=cost_s, walk=partial(self._named, layout, limits or {})) if cost_s <= within else None

    def _rooms_within(self, limits: Limits) -> list[int]:
        return [sum(self._node_room(node, limits) for node in nodes) for nodes in self._nodes.values()]

    def _node_room(self, node: Path, limits: Limits) -> int:
        return min(self._node_rooms[node], limits.get(node, self._node_rooms[node]))

    def _bounds(self, limits: Limits) -> list[tuple[frozenset[int], int]]:
        """Return the places of each limited domain, and the number of ranks that they may take together."""
        return [
            (frozenset(index for index, place in enumerate(self._places) if place[: len(domain)] == domain), most)
            for domain, most in limits.items()
            if domain not in self._node_rooms
        ]

    def _packed(self) -> Iterator[_Layout]:
        """Yield initial layouts: places filled from each one on, the closest next, chain by chain and ring by ring."""
        stages, replicas = self._costs.num_stages, self._costs.num_replicas
        by_ring = [replica * stages + stage for stage in range(stages) for replica in range(replicas)]
        rooms = self._rooms_within({})
        for first in sorted(range(len(rooms)), key=lambda place: (-rooms[place], place))[:_MOST_STARTS]:
            near = self._costs.depths[first]
            order = sorted(range(len(near)), key=lambda place: (-near[place], -rooms[place]))
            seats = [place for place in order for _ in range(rooms[place])][: stages * replicas]
            yield tuple(seats)
            yield tuple(place for _, place in sorted(zip(by_ring, seats, strict=True)))

    def _named(self, layout: _Layout, limits: Limits) -> Iterator[Path]:
        """Return the nodes of a layout; among equal ones the first by name."""
        seats = [
            iter([node for node in nodes for _ in range(self._node_room(node, limits))])
            for nodes in self._nodes.values()
        ]
        return (next(seats[place]) for place in layout)


class _Search:
    """One search problem: room by place, limits on sets of places, and the depth that each replica must keep to."""

    def __init__(
        self, costs: LayoutCosts, rooms: Sequence[int], bounds: Sequence[tuple[frozenset[int], int]], depth: int
    ) -> None:
        self._costs = costs
        self._rooms = rooms
        self._bounds = bounds
        self._depth = depth

    def improved(self, start: _Layout) -> _Layout | None:
        """Improve a layout by the best change, again and again; None if it cannot be made to fit."""
        layout = self._fitted(start)
        if layout is None:
            return None
        score = self._costs.score(layout)
        while True:
            best = min(self._changed(layout), default=(score, layout))
            if best[0] >= score:
                return tuple(layout)
            score, layout = best

    def _fitted(self, start: _Layout) -> list[int] | None:
        """Move the ranks that find no room, each as close as possible to the others of its replica."""
        layout: list[int | None] = [None] * len(start)
        for rank, place in enumerate(start):
            if self._may(layout, rank, place):
                layout[rank] = place
        for rank, place in enumerate(start):
            if layout[rank] is None:
                free = [each for each in range(len(self._rooms)) if self._may(layout, rank, each)]
                if not free:
                    return None
                layout[rank] = max(free, key=lambda each: (self._costs.depths[place][each], -each))
        return [place for place in layout if place is not None]

    def _may(self, layout: Sequence[int | None], rank: int, place: int) -> bool:
        """Tell whether a rank that is nowhere yet may go to a place."""
        if layout.count(place) >= self._rooms[place]:
            return False
        for places, most in self._bounds:
            if place in places and sum(each in places for each in layout) >= most:
                return False
        start = rank - rank % self._costs.num_stages
        near = self._costs.depths[place]
        own = layout[start : start + self._costs.num_stages]
        return self._depth == 0 or all(each is None or near[each] >= self._depth for each in own)

    def _changed(self, layout: list[int]) -> Iterator[tuple[Score, list[int]]]:
        """Yield all layouts that are one change away, with what they cost."""
        tally = Tally(self._costs, layout)
        for rank, place in enumerate(layout):
            for other in self._free(layout, rank):
                moved = [*layout[:rank], other, *layout[rank + 1 :]]
                yield tally.after(moved, rank), moved
            for later in range(rank + 1, len(layout)):
                if layout[later] != place:
                    swapped = layout.copy()
                    swapped[rank], swapped[later] = layout[later], place
                    if self._depth == 0 or self._is_close(swapped):
                        yield tally.after(swapped, rank, later), swapped

    def _free(self, layout: Sequence[int], rank: int) -> Iterator[int]:
        """Yield the places that a rank may move to; among unused places of one domain only the first."""
        without: list[int | None] = [*layout[:rank], None, *layout[rank + 1 :]]
        seen: set[int] = set()
        for place, parent in enumerate(self._costs.parents):
            is_used = place in without
            if place != layout[rank] and (is_used or parent not in seen) and self._may(without, rank, place):
                if not is_used:
                    seen.add(parent)
                yield place

    def _is_close(self, layout: Sequence[int]) -> bool:
        num, depths = self._costs.num_stages, self._costs.depths
        return all(depths[layout[rank - rank % num]][place] >= self._depth for rank, place in enumerate(layout))
