"""Leaves, the domains just above the nodes: their nodes by name, and as a stock of contents."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import add

from pipelinejob.fabric.topology import Topology
from pipelinejob.placement.capacity import Capacity
from pipelinejob.placement.mixed_chain.contents import FULL, Content, Contents, Stock
from pipelinejob.placement.prices import Path


@dataclass(frozen=True)
class Leaf:
    """One leaf: its nodes by path, each with its content."""

    path: Path
    nodes: Mapping[Path, Content]

    @cached_property
    def stock(self) -> Stock:
        return tuple(sorted(Counter(content for content in self.nodes.values() if content != FULL).items()))

    def by_content(self) -> dict[Content, list[Path]]:
        """Group the nodes by content, in order of their names."""
        nodes: dict[Content, list[Path]] = {}
        for node, content in self.nodes.items():
            nodes.setdefault(content, []).append(node)
        return nodes

    def limited(self, limits: Mapping[Path, int], contents: Contents) -> "Leaf":
        """Return the leaf with some of its nodes limited to at most so many stages."""
        changed = {
            node: contents.with_most(self.nodes[node], most) for node, most in limits.items() if node in self.nodes
        }
        return Leaf(self.path, {**self.nodes, **changed}) if changed else self


def leaves_of(topology: Topology, room: Capacity, contents: Contents) -> list[Leaf]:
    """Return the leaves with nodes that can take a stage, by name."""
    asked = contents.asked
    left = {topology.paths[name]: asked.left(free) for name, free in room.free_by_node()}
    fitting = sorted(node for node, amounts in left.items() if any(asked.counts(amounts)))
    leaves = []
    for path, nodes in groupby(fitting, key=lambda node: node[:-1]):
        held = {node: contents.of(left[node], asked.takes(node[-1])) for node in nodes}
        if any(held.values()):
            leaves.append(Leaf(path, {node: content for node, content in held.items() if content != FULL}))
    return leaves


def by_domain(counts: Iterable[tuple[Path, Sequence[int]]]) -> dict[Path, Sequence[int]]:
    """Add up counts, kind by kind, that belong to the same domain."""
    totals: dict[Path, Sequence[int]] = {}
    for domain, each in counts:
        totals[domain] = tuple(map(add, totals[domain], each)) if domain in totals else each
    return totals
