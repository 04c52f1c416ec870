"""The fabric as it is drawn: nodes in domains, how much is taken, a plan's ranks on them. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from pipelinejob.contract.plan import Placement
from pipelinejob.fabric.topology import Topology

Rank = tuple[int, int]  # replica, stage


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node: how much it has of what stages ask for, how much of that was free before them."""

    name: str
    path: tuple[str, ...]  # its domains from coarse to fine, the node last
    capacity: float
    free: float
    unusable: str | None = None
    ranks: tuple[Rank, ...] = ()

    @property
    def busy_ratio(self) -> float:
        """The share that other jobs have taken."""
        return 1 - self.free / self.capacity if self.capacity else 1.0


@dataclass(frozen=True, kw_only=True)
class DomainView:
    """A part of the network and all nodes in it, those of the chain first."""

    path: tuple[str, ...]
    nodes: tuple[NodeView, ...]

    @property
    def name(self) -> str:
        """The last part of its path; the cluster's for the root."""
        return self.path[-1] if self.path else "the cluster"

    @property
    def depth(self) -> int:
        """The number of levels down to it, its own included."""
        return len(self.path)

    @property
    def is_used(self) -> bool:
        """Whether it holds a rank."""
        return any(node.ranks for node in self.nodes)

    @property
    def num_free(self) -> int:
        """The number of nodes of which nothing is taken."""
        return sum(node.unusable is None and node.busy_ratio == 0 for node in self.nodes)

    @cached_property
    def children(self) -> tuple["DomainView", ...]:
        """The domains one level below, in the order in which the chain of stages reaches them."""
        parts: dict[str, list[NodeView]] = {}
        for node in self.nodes:
            parts.setdefault(node.path[self.depth], []).append(node)
        found = [DomainView(path=(*self.path, name), nodes=tuple(nodes)) for name, nodes in parts.items()]
        return tuple(sorted(found, key=_order))


def _order(domain: DomainView) -> tuple[Rank, tuple[str, ...]]:
    first = min((rank for node in domain.nodes for rank in node.ranks), default=(2**31, 0))
    return first, domain.path


@dataclass(frozen=True, kw_only=True)
class FabricView:
    """All nodes, the levels from coarse to fine (nodes last), and the resource counted."""

    levels: tuple[str, ...]
    nodes: tuple[NodeView, ...]
    resource: str

    @property
    def root(self) -> DomainView:
        """The domain that holds all nodes."""
        return DomainView(path=(), nodes=self.nodes)

    @property
    def capacity(self) -> float:
        """How much of the resource all nodes have."""
        return sum(node.capacity for node in self.nodes)

    @property
    def free(self) -> float:
        """How much of it is free on nodes that can be used."""
        return sum(node.free for node in self.nodes if node.unusable is None)

    def holding(self, placement: Placement | None) -> "FabricView":
        """Return the same fabric with a placement's ranks on their nodes."""
        ranks: dict[str, list[Rank]] = {}
        for each in placement.assignments if placement else ():
            ranks.setdefault(each.node, []).append((each.replica, each.stage))
        nodes = tuple(replace(node, ranks=tuple(sorted(ranks.get(node.name, ())))) for node in self.nodes)
        return replace(self, nodes=nodes)


def fabric_view(
    topology: Topology,
    *,
    capacity: Mapping[str, Mapping[str, Fraction]],
    free: Mapping[str, Mapping[str, Fraction]],
    unusable: Mapping[str, str | None],
    resource: str,
) -> FabricView:
    """Return a topology's nodes as seen by one resource.

    `capacity` and `free` are by node, then by resource.
    """

    def of(amounts: Mapping[str, Mapping[str, Fraction]], node: str) -> float:
        return float(max(amounts[node].get(resource, Fraction(0)), Fraction(0)))

    return FabricView(
        levels=tuple(level.name for level in topology.levels),
        nodes=tuple(
            NodeView(
                name=name, path=path, capacity=of(capacity, name), free=of(free, name), unusable=unusable.get(name)
            )
            for name, path in topology.paths.items()
        ),
        resource=resource,
    )


def closest_common_depth(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many levels two paths share: none across top domains, all on one node."""
    return next((depth for depth, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def boundaries(nodes: Iterable[NodeView]) -> list[tuple[Rank, NodeView, NodeView]]:
    """Return stage boundaries: the rank before each, its node, and the next stage's node."""
    of_rank = {rank: node for node in nodes for rank in node.ranks}
    pairs = [(rank, of_rank.get((rank[0], rank[1] + 1))) for rank in sorted(of_rank)]
    return [(rank, of_rank[rank], after) for rank, after in pairs if after is not None]
