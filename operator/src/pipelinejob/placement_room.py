"""What nodes have left, and what ranks ask of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipelinejob.topology import NodeInfo

Number = int | Fraction


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


class Room:
    """What is left on the nodes that can be used, as ranks are put there one by one."""

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self._free = {node.name: dict(node.free) for node in nodes if node.unusable is None}

    def fits(self, demand: Demand, node: str) -> bool:
        """Say whether the node can take this rank now."""
        return self.count(demand, node, most=1) == 1

    def count(self, demand: Demand, node: str, *, most: int) -> int:
        """Give how many such ranks the node can take now, at most `most`."""
        free = self._free.get(node)
        if free is None or (demand.nodes is not None and node not in demand.nodes):
            return 0
        counts = (int(free.get(name, 0) // amount) for name, amount in demand.requests.items() if amount > 0)
        return max(0, min((most, *counts)))

    def take(self, demand: Demand, node: str) -> None:
        """Put a rank there."""
        self._add(demand, node, -1)

    def give_back(self, demand: Demand, node: str) -> None:
        """Take it away again."""
        self._add(demand, node, 1)

    def _add(self, demand: Demand, node: str, sign: int) -> None:
        free = self._free[node]
        for resource, amount in demand.requests.items():
            free[resource] = free.get(resource, Fraction(0)) + sign * amount

    def left(self, node: str, resources: Sequence[str]) -> tuple[Number, ...]:
        """Give what the node has of some resources."""
        free = self._free.get(node, {})
        return tuple(free.get(resource, Fraction(0)) for resource in resources)
