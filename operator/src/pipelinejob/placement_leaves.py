"""The domains just above the nodes, as stocks: how many nodes of each content they hold, and what runs those can take.

What a leaf can take depends on its stock and not on its name, so of leaves with the same stock one is looked at.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import groupby
from operator import add

from pipelinejob.placement_contents import FULL, Content, Contents, Stock
from pipelinejob.placement_room import Room
from pipelinejob.prices import Path
from pipelinejob.topology import Topology

Seat = tuple[Content, bool]  # a node for a stage: what it can take before, and whether the stage before stands on it
Run = tuple[Seat, ...]

_Choice = Callable[[int, Iterable[Content]], Content | None]


@dataclass(frozen=True)
class Leaf:
    """One leaf: its nodes by name, with what each can take."""

    path: Path
    nodes: Mapping[Path, Content]

    @cached_property
    def stock(self) -> Stock:
        return tuple(sorted(Counter(content for content in self.nodes.values() if content != FULL).items()))

    def limited(self, limits: Mapping[Path, int], contents: Contents) -> "Leaf":
        """Give the leaf as it is if some of its nodes may take no more than so many stages."""
        changed = {
            node: contents.with_most(self.nodes[node], most) for node, most in limits.items() if node in self.nodes
        }
        return Leaf(self.path, {**self.nodes, **changed}) if changed else self


def leaves_of(topology: Topology, room: Room, contents: Contents) -> list[Leaf]:
    """Give the leaves with nodes that can take a stage, by name."""
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


class Runs:
    """The long runs of stages that stocks can take."""

    def __init__(self, contents: Contents) -> None:
        """Take what nodes can take."""
        self._contents = contents
        self._kind_of = contents.kind_of
        self._is_one_each = contents.is_one_each
        self._known: dict[tuple[Stock, int], list[Run]] = {}
        self._in_a_row: dict[tuple[Content, int], int] = {}

    def of(self, stock: Stock, stage: int) -> list[Run]:
        """Give the nodes for long runs of stages from `stage` on."""
        if (stock, stage) not in self._known:
            if self._is_one_each:
                runs = [self._matched(stock, stage)]
            else:
                ways = (self._seated(stock, stage, choose) for choose in (self._least_of_use, self._longest_held))
                runs = [run for run, _ in groupby(ways)]
            self._known[stock, stage] = [run for run in runs if run]
        return self._known[stock, stage]

    def rest(self, stock: Stock, stage: int, run: Run) -> Stock:
        """Give what is left of a stock once a run from `stage` on has taken its nodes."""
        left = Counter(dict(stock))
        for kind, (content, _) in zip(self._kind_of[stage:], run, strict=False):
            left[content] -= 1
            left[self._contents.after(content, kind)] += 1
        return tuple(sorted((content, number) for content, number in left.items() if number and content != FULL))

    def _matched(self, stock: Stock, stage: int) -> Run:
        """Match stages with nodes that take one each: a kind that finds none free moves others aside, if they can."""
        free = dict(stock)
        held: dict[Content, Counter[int]] = {content: Counter() for content in free}
        by_use = cache(partial(self._contents.by_use, contents=tuple(free)))

        def is_seated(kind: int, tried: set[int]) -> bool:
            tried.add(kind)
            for content in by_use(kind):
                if free[content]:
                    free[content] -= 1
                    held[content][kind] += 1
                    return True
                for other in held[content]:
                    if other not in tried and held[content][other] and is_seated(other, tried):
                        held[content][other] -= 1
                        held[content][kind] += 1
                        return True
            return False

        def next_of(kind: int) -> Content:
            """Hand out a node that a kind holds, that of least use first: a run that is cut off leaves the others."""
            content = next(content for content in by_use(kind) if held[content][kind])
            held[content][kind] -= 1
            return content

        kinds = self._kind_of[stage:]
        length = next((number for number, kind in enumerate(kinds) if not is_seated(kind, set())), len(kinds))
        return tuple((next_of(kind), False) for kind in kinds[:length])

    def _seated(self, stock: Stock, stage: int, choose: _Choice) -> Run:
        """Put stage after stage on a node, staying on it as long as it can take more."""
        counts, left, run, here = self._contents.counts, Counter(dict(stock)), list[Seat](), FULL
        for number, kind in enumerate(self._kind_of[stage:], start=stage):
            stays = counts[here][kind] > 0
            content = here if stays else choose(number, +left)
            if content is None:
                break
            run.append((content, stays))
            here = self._contents.after(content, kind)
            left[content] -= 1
            left[here] += 1
        return tuple(run)

    def _least_of_use(self, stage: int, held: Iterable[Content]) -> Content | None:
        """Choose the node that is of least use to others."""
        return next(iter(self._contents.by_use(self._kind_of[stage], held)), None)

    def _longest_held(self, stage: int, held: Iterable[Content]) -> Content | None:
        """Choose the node that can take the most stages in a row from here on."""
        fitting = self._contents.by_use(self._kind_of[stage], held)
        return min(fitting, key=lambda content: -self._num_in_a_row(content, stage), default=None)

    def _num_in_a_row(self, content: Content, stage: int) -> int:
        if (content, stage) not in self._in_a_row:
            here, number = content, 0
            for kind in self._kind_of[stage:]:
                if not self._contents.counts[here][kind]:
                    break
                here, number = self._contents.after(here, kind), number + 1
            self._in_a_row[content, stage] = number
        return self._in_a_row[content, stage]
