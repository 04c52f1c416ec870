"""What nodes have left, and what ranks ask of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipelinejob.topology import NodeInfo

Number = int | Fraction

PLENTY = 100_000  # ranks on one node are not counted any further


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one rank asks for.

    `nodes` are those that its pod may go to (selectors, affinities, tolerations); None: any.
    """

    replica: int
    stage: int
    requests: Mapping[str, Number]
    nodes: frozenset[str] | None = None

    def is_like(self, other: "Demand") -> bool:
        """Say whether any node that takes one takes the other."""
        return self.requests == other.requests and self.nodes == other.nodes


def kinds_of(demands: Sequence[Demand]) -> list[Demand]:
    """Give one demand of each kind."""
    kinds: list[Demand] = []
    for demand in demands:
        if not any(demand.is_like(kind) for kind in kinds):
            kinds.append(demand)
    return kinds


class Room:
    """What is left on the nodes that can be used, as ranks are put there one by one."""

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self._free: dict[str, Mapping[str, Number]] = {node.name: node.free for node in nodes if node.unusable is None}

    def copy(self) -> "Room":
        """Give the same room, from which can be taken without the other's knowing."""
        other = Room(())
        other._free = dict(self._free)
        return other

    def fits(self, demand: Demand, node: str) -> bool:
        """Say whether the node can take this rank now."""
        return self.count(demand, node, most=1) == 1

    def count(self, demand: Demand, node: str, *, most: int = PLENTY) -> int:
        """Give how many such ranks the node can take now, at most `most`."""
        free = self._free.get(node)
        if free is None or (demand.nodes is not None and node not in demand.nodes):
            return 0
        return _count(free, _wanted(demand.requests), most)

    def counts(self, demand: Demand, *, most: int = PLENTY) -> dict[str, int]:
        """Give how many such ranks each node can take now, those left out that can take none."""
        wanted = _wanted(demand.requests)
        allowed = self._free if demand.nodes is None else demand.nodes
        counts = ((node, _count(free, wanted, most)) for node, free in self._free.items() if node in allowed)
        return {node: count for node, count in counts if count}

    def parts_all(self, pairs: Iterable[tuple[Demand, Demand]]) -> bool:
        """Say whether no node can take both ranks of a pair, going by the largest amount of each resource."""
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
        """Put a rank there."""
        self._add(demand, node, -1)

    def give_back(self, demand: Demand, node: str) -> None:
        """Take it away again."""
        self._add(demand, node, 1)

    def _add(self, demand: Demand, node: str, sign: int) -> None:
        free = dict(self._free[node])  # what was handed in belongs to others
        for resource, amount in demand.requests.items():
            free[resource] = free.get(resource, 0) + sign * amount
        self._free[node] = free

    def left(self, node: str, resources: Sequence[str]) -> tuple[Number, ...]:
        """Give what the node has of some resources."""
        free = self._free.get(node, {})
        return tuple(free.get(resource, 0) for resource in resources)

    def free_by_node(self) -> Iterable[tuple[str, Mapping[str, Number]]]:
        """Give what each node that can be used has left."""
        return self._free.items()


def _wanted(requests: Mapping[str, Number]) -> list[tuple[str, int, int]]:
    """Give what is asked for as numerators and denominators: dividing these takes a fifth of what fractions take."""
    return [(name, amount.numerator, amount.denominator) for name, amount in requests.items() if amount > 0]


def _count(free: Mapping[str, Number], wanted: Iterable[tuple[str, int, int]], most: int) -> int:
    for name, numerator, denominator in wanted:
        left = free.get(name, 0)
        most = min(most, left.numerator * denominator // (left.denominator * numerator))
        if most <= 0:
            return 0
    return most
