"""The requests of one chain's stages, by kind, as integers in the finest unit that any of them uses."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations_with_replacement
from math import lcm
from operator import add, mul

from pipelinejob.placement.capacity import Demand, Number

Amounts = tuple[int, ...]  # of each resource
Counts = tuple[int, ...]  # of each kind


class StageKinds:
    """The kinds of a chain's stages, numbered from 0."""

    def __init__(self, demands: Sequence[Demand]) -> None:
        """Sort the chain's stages into kinds."""
        self.num_stages = len(demands)
        self.kinds: list[Demand] = []
        self.kind_of = [self._kind(demand) for demand in demands]
        resources = sorted({name for each in self.kinds for name, amount in each.requests.items() if amount > 0})
        wanted = [[max(0, each.requests.get(name, 0)) for name in resources] for each in self.kinds]
        units = [lcm(*(amount.denominator for amount in amounts)) for amounts in zip(*wanted, strict=True)]
        self.amounts = [tuple(map(int, map(mul, amounts, units))) for amounts in wanted]  # of each kind
        # More than all stages could ever ask for is not told apart.
        plenty = [self.num_stages * max(amounts) for amounts in zip(*self.amounts, strict=True)]
        self._measures = list(zip(resources, units, plenty, strict=True))
        self.counts = cache(self._counts)

    def _kind(self, demand: Demand) -> int:
        number = next((number for number, kind in enumerate(self.kinds) if kind.is_like(demand)), len(self.kinds))
        if number == len(self.kinds):
            self.kinds.append(demand)
        return number

    def takes(self, node: str) -> tuple[int, ...]:
        """Return the kinds that may go to a node."""
        return tuple([number for number, kind in enumerate(self.kinds) if kind.nodes is None or node in kind.nodes])

    def left(self, free: Mapping[str, Number]) -> Amounts:
        """Return a node's free amounts of the resources that the stages request."""
        whole = []
        for name, unit, plenty in self._measures:
            amount = free.get(name, 0)
            whole.append(min(plenty, amount.numerator * unit // amount.denominator))
        return tuple(whole)

    def _counts(self, left: Amounts) -> Counts:
        """Count, for each kind alone, the stages that fit into the amounts left."""
        return tuple(
            min([self.num_stages, *(max(0, has // wants) for has, wants in zip(left, amounts, strict=True) if wants)])
            for amounts in self.amounts
        )

    def is_one_each(self, lefts: Sequence[Amounts]) -> bool:
        """Tell whether no node takes two stages, going by the largest amount of each resource."""
        largest = list(map(max, zip(*lefts, strict=True)))
        for one, other in combinations_with_replacement(set(self.amounts), 2):
            if all(wants <= has for wants, has in zip(map(add, one, other), largest, strict=True)):
                return False
        return True
