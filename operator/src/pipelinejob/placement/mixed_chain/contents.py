"""The classes of nodes by what they can still take: nodes that take the same stages share one number.

Of a thousand nodes there are but a few contents, so what a node can take, and what it can take
after that, is reckoned once for each of them.
"""

from dataclasses import dataclass, replace
from functools import cache

from pipelinejob.placement.mixed_chain.stage_kinds import Amounts, Counts, StageKinds

Content = int
Stock = tuple[tuple[Content, int], ...]  # how many nodes of each content there are, in order

FULL: Content = 0  # takes nothing


@dataclass(frozen=True, slots=True)
class _Node:
    """The properties by which contents differ."""

    left: Amounts
    takes: tuple[int, ...] = ()  # the kinds that may go there
    most: int = 0  # stages
    versatility: int = 0  # how many kinds the node was of use to before the chain took any of it


class Contents:
    """The contents of the nodes that a chain may go to."""

    def __init__(self, asked: StageKinds) -> None:
        """Start with no nodes but full ones."""
        self.asked = asked
        self.kind_of = asked.kind_of
        self.counts: list[Counts] = [(0,) * len(asked.kinds)]  # of each content: how many of each kind fit alone
        self._nodes = [_Node((0,) * len(asked.amounts[0]))]
        self._number = cache(self._numbered)
        self.of = cache(self._of)
        self.after = cache(self._after)
        self.by_use = cache(self._by_use)
        self.counts_in = cache(self._counts_in)

    def _of(self, left: Amounts, takes: tuple[int, ...]) -> Content:
        """Return the content of a node with these free amounts that takes these kinds."""
        versatility = sum(1 for kind in takes if self.asked.counts(left)[kind])
        return self._number(_Node(left, takes, self.asked.num_stages, versatility))

    def with_most(self, content: Content, most: int) -> Content:
        """Return the content limited to at most so many stages."""
        node = self._nodes[content]
        return self._number(replace(node, most=min(node.most, most)))

    def _after(self, content: Content, kind: int) -> Content:
        """Return the content after one stage of the kind was placed on the node."""
        node, amounts = self._nodes[content], self.asked.amounts[kind]
        left = tuple(has - wants for has, wants in zip(node.left, amounts, strict=True))
        return self._number(replace(node, left=left, most=node.most - 1))

    def _numbered(self, node: _Node) -> Content:
        """Number a node's content, and count the stages of each kind that it can take."""
        fitting, counts = self.asked.counts(node.left), [0] * len(self.asked.kinds)
        if not any(fitting):
            return FULL
        for kind in node.takes:
            counts[kind] = min(fitting[kind], node.most)
        if not any(counts):
            return FULL
        self._nodes.append(node)
        self.counts.append(tuple(counts))
        return len(self._nodes) - 1

    # What is reckoned of them

    @property
    def is_one_each(self) -> bool:
        """Tell whether no node takes two stages."""
        return self.asked.is_one_each([node.left for node in self._nodes])

    def _by_use(self, kind: int, contents: tuple[Content, ...]) -> list[Content]:
        """Sort the contents that can take a stage of a kind, the least versatile first."""
        fitting = [content for content in contents if self.counts[content][kind]]
        return sorted(fitting, key=lambda content: (self._nodes[content].versatility, self.counts[content][kind]))

    def _counts_in(self, stock: Stock) -> Counts:
        """Count, for each kind alone, the stages that a stock could take."""
        kinds = range(len(self.asked.kinds))
        return tuple(sum([self.counts[content][kind] * number for content, number in stock]) for kind in kinds)

    def room_in(self, stock: Stock) -> int:
        """Bound the number of stages that a stock could take, whatever their kinds."""
        return sum(max(self.counts[content]) * number for content, number in stock)
