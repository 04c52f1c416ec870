"""Prices of layouts of a whole job as integers, with places numbered, so that many layouts are priced quickly."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelinejob.fabric.network import common_depth
from pipelinejob.placement.prices import Path, Prices

Score = tuple[int, int]  # what the job costs, and the sum of what all its chains and rings cost

_PRECISION = 1e-9  # of the largest price: below it is rounding


@dataclass(frozen=True, slots=True)
class LayoutCosts:
    """Integer prices, and the common depth of every two places."""

    unit: float
    num_stages: int
    num_replicas: int
    chain: list[list[int]]
    ring: list[list[int]]
    wrap: list[int]
    depths: list[list[int]]
    parents: list[int]  # of each place the number of the domain around it

    @classmethod
    def of(cls, prices: Prices, num_replicas: int, places: Sequence[Path]) -> "LayoutCosts":
        unit = max(map(max, (*prices.chain, *prices.ring, prices.wrap))) * _PRECISION or 1.0

        def whole(by_depth: Sequence[float]) -> list[int]:
            return [round(price / unit) for price in by_depth]

        return cls(
            unit=unit,
            num_stages=prices.num_stages,
            num_replicas=num_replicas,
            chain=list(map(whole, prices.chain)),
            ring=list(map(whole, prices.ring)),
            wrap=whole(prices.wrap),
            depths=[[common_depth(one, other) for other in places] for one in places],
            parents=[[place[:-1] for place in places].index(place[:-1]) for place in places],
        )

    def score(self, layout: Sequence[int]) -> Score:
        """Price a whole layout."""
        chains = [self.chain_of(layout, replica) for replica in range(self.num_replicas)]
        rings = [self.ring_of(layout, stage) for stage in range(self.num_stages)]
        return max(chains) + max(rings), sum(chains) + sum(rings)

    def chain_of(self, layout: Sequence[int], replica: int) -> int:
        """Price one replica's chain."""
        depths, total = self.depths, 0
        start = place = layout[replica * self.num_stages]
        for stage, price in enumerate(self.chain, start=replica * self.num_stages + 1):
            total += price[depths[place][layout[stage]]]
            place = layout[stage]
        return total + self.wrap[depths[place][start]]

    def ring_of(self, layout: Sequence[int], stage: int) -> int:
        """Price one stage's ring."""
        first, *others = layout[stage :: self.num_stages]
        near = self.depths[first]
        return self.ring[stage][min(near[each] for each in others)]


class Tally:
    """The costs of one layout's chains and rings, so that a changed layout is priced incrementally."""

    def __init__(self, costs: LayoutCosts, layout: Sequence[int]) -> None:
        self._costs = costs
        self._chains = [costs.chain_of(layout, replica) for replica in range(costs.num_replicas)]
        self._rings = [costs.ring_of(layout, stage) for stage in range(costs.num_stages)]

    @property
    def dearest(self) -> tuple[int, int]:
        """Return the replica whose chain costs most, and the stage whose ring does."""
        return self._chains.index(max(self._chains)), self._rings.index(max(self._rings))

    def after(self, layout: Sequence[int], *ranks: int) -> Score:
        """Price a layout in which only these ranks have moved."""
        chains, rings = self._chains.copy(), self._rings.copy()
        for rank in ranks:
            replica, stage = divmod(rank, self._costs.num_stages)
            chains[replica] = self._costs.chain_of(layout, replica)
            rings[stage] = self._costs.ring_of(layout, stage)
        return max(chains) + max(rings), sum(chains) + sum(rings)
