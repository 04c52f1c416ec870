"""Lower bounds of a chain's cost over some leaves, from counts of free places alone."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate

from pipelinejob.placement.mixed_chain.contents import Contents
from pipelinejob.placement.mixed_chain.leaves import Leaf, by_domain
from pipelinejob.placement.prices import Prices

_NEVER = 10**9
_INFINITE = float("inf")

_Counts = Sequence[int]  # by kind


class Bounds:
    """Lower bounds for one chain, over any leaves."""

    def __init__(self, contents: Contents, prices: Prices) -> None:
        """Prepare the bounds for nodes with these contents and these prices."""
        self._contents = contents
        self._prices = prices
        self._num_stages = len(contents.kind_of)
        self._num_levels = prices.num_depths - 1
        self._crossed_s = cache(self._least_crossed_s)
        self._ends = cache(self._farthest)

    def behind_s(self, leaves: Sequence[Leaf]) -> list[float]:
        """Bound, for each stage, the cost of the boundaries behind it, by the number of domains that the rest needs."""
        behind = [0.0] * (self._num_stages + 1)
        for level in range(1, self._num_levels + 1):
            for stage, needed in enumerate(self._needed(leaves, level)):
                behind[stage] += self._crossed_s(level, stage, needed - 1)
        return behind

    def _least_crossed_s(self, level: int, stage: int, num_crossed: int) -> float:
        """Price the boundaries that cost least where so many of those behind a stage cross a level.

        One that crosses a level costs at least what the level adds to the next finer one's price.
        """
        if num_crossed >= _NEVER - 1:
            return _INFINITE
        added = [price[level - 1] - price[level] for price in self._prices.chain[stage:]]
        return sum(sorted(added)[:num_crossed])

    def _needed(self, leaves: Sequence[Leaf], level: int) -> list[int]:
        """Count, for each stage, the fewest domains of a level that it and those behind it need."""
        if level == self._num_levels:
            counts = self._contents.counts
            return self._needed_by_room([max(counts[content]) for leaf in leaves for content in leaf.nodes.values()])
        rooms = by_domain((leaf.path[:level], (self._contents.room_in(leaf.stock),)) for leaf in leaves)
        by_kind = by_domain((leaf.path[:level], self._contents.counts_in(leaf.stock)) for leaf in leaves)
        by_room = self._needed_by_room(room for (room,) in rooms.values())
        return list(map(max, by_room, self._needed_by_kind(by_kind.values())))

    def _needed_by_room(self, rooms: Iterable[int]) -> list[int]:
        """Count the largest domains whose total room is enough, whatever the kinds."""
        totals = list(accumulate(sorted(rooms, reverse=True)))
        return [bisect_left(totals, self._num_stages - stage) + 1 for stage in range(self._num_stages)]

    def _needed_by_kind(self, domains: Iterable[_Counts]) -> list[int]:
        """Count the longest possible runs: none is longer than a domain has room for each of its kinds alone."""
        ends = [max(each) for each in zip(*map(self._ends, set(domains)), strict=True)]
        needed = [_NEVER] * self._num_stages + [0]
        for stage in reversed(range(self._num_stages)):
            if ends[stage] > stage:
                needed[stage] = min(_NEVER, 1 + needed[ends[stage]])
        return needed[:-1]

    def _farthest(self, room: _Counts) -> list[int]:
        """Return, for each stage, the end of the longest run from there that a domain could take, by kind."""
        left, kind_of, most = list(room), self._contents.kind_of, self._num_stages
        ends, end = list[int](), 0
        for stage in range(most):
            while end < most and left[kind_of[end]] > 0:
                left[kind_of[end]] -= 1
                end += 1
            ends.append(end)
            if end > stage:
                left[kind_of[stage]] += 1
            else:
                end = stage + 1
        return ends
