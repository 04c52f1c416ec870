"""The free resources of nodes, and the requests of the ranks that are to be placed on them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipelinejob.fabric.topology import NodeInfo

Number = int | Fraction

PLENTY = 100_000  # ranks on one node are not counted any further


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The resources that one rank requests.

    `nodes` are those that its pod may go to (selectors, affinities, tolerations); None: any.
    """

    replica: int
    stage: int
    requests: Mapping[str, Number]
    nodes: frozenset[str] | None = None

    def is_like(self, other: "Demand") -> bool:
        """Tell whether any node that takes one takes the other."""
        return self.requests == other.requests and self.nodes == other.nodes


def kinds_of(demands: Sequence[Demand]) -> list[Demand]:
    """Return one demand of each kind: those that the same nodes satisfy are of one kind."""
    kinds: list[Demand] = []
    for demand in demands:
        if not any(demand.is_like(kind) for kind in kinds):
            kinds.append(demand)
    return kinds


class Capacity:
    """The free resources of the usable nodes, reduced as ranks are placed one by one."""

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self._free: dict[str, Mapping[str, Number]] = {node.name: node.free for node in nodes if node.unusable is None}

    def copy(self) -> "Capacity":
        """Return a copy, whose changes leave this one as it is."""
        other = Capacity(())
        other._free = dict(self._free)
        return other

    def fits(self, demand: Demand, node: str) -> bool:
        """Tell whether the node can take this rank now."""
        return self.count(demand, node, most=1) == 1

    def count(self, demand: Demand, node: str, *, most: int = PLENTY) -> int:
        """Count the ranks like this one that the node can take now, at most `most`."""
        free = self._free.get(node)
        if free is None or (demand.nodes is not None and node not in demand.nodes):
            return 0
        return _count(free, _wanted(demand.requests), most)

    def counts(self, demand: Demand, *, most: int = PLENTY) -> dict[str, int]:
        """Count, by node, the ranks like this one that it can take now; nodes that can take none are left out."""
        wanted = _wanted(demand.requests)
        allowed = self._free if demand.nodes is None else demand.nodes
        counts = ((node, _count(free, wanted, most)) for node, free in self._free.items() if node in allowed)
        return {node: count for node, count in counts if count}

    def parts_all(self, pairs: Iterable[tuple[Demand, Demand]]) -> bool:
        """Tell whether no node can take both ranks of a pair, going by the largest amount of each resource."""
        largest: dict[str, Number] = {}
        for free in self._free.values():
            for name, amount in free.items():
                if amount > largest.get(name, 0):
                    largest[name] = amount
        known: set[tuple[int, int]] = set()
        for one, other in pairs:
            if (id(one.requests), id(other.requests)) in known:
                continue
            known.add((id(one.requests), id(other.requests)))
            both = Counter(one.requests) + Counter(other.requests)
            if all(amount <= largest.get(name, 0) for name, amount in both.items()):
                return False
        return True

    def take(self, demand: Demand, node: str) -> None:
        """Reserve a rank's resources on a node."""
        self._add(demand, node, -1)

    def give_back(self, demand: Demand, node: str) -> None:
        """Release a rank's resources on a node."""
        self._add(demand, node, 1)

    def _add(self, demand: Demand, node: str, sign: int) -> None:
        free = dict(self._free[node])  # what was handed in belongs to others
        for resource, amount in demand.requests.items():
            free[resource] = free.get(resource, 0) + sign * amount
        self._free[node] = free

    def left(self, node: str, resources: Sequence[str]) -> tuple[Number, ...]:
        """Return the free amounts of some resources on a node."""
        free = self._free.get(node, {})
        return tuple(free.get(resource, 0) for resource in resources)

    def free_by_node(self) -> Iterable[tuple[str, Mapping[str, Number]]]:
        """Return the free resources of each usable node."""
        return self._free.items()


def _wanted(requests: Mapping[str, Number]) -> list[tuple[str, int, int]]:
    """Split amounts into numerators and denominators: dividing these takes a fifth of the time of fractions."""
    return [(name, amount.numerator, amount.denominator) for name, amount in requests.items() if amount > 0]


def _count(free: Mapping[str, Number], wanted: Iterable[tuple[str, int, int]], most: int) -> int:
    for name, numerator, denominator in wanted:
        left = free.get(name, 0)
        most = min(most, left.numerator * denominator // (left.denominator * numerator))
        if most <= 0:
            return 0
    return most
