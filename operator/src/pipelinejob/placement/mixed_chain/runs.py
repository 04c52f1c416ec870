"""The longest runs of stages that a leaf can still take, which depend on its stock of nodes, not on its name.

So of leaves with the same stock one is looked at, and nodes are looked at by name last.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import groupby

from pipelinejob.placement.mixed_chain.contents import FULL, Content, Contents, Stock

Seat = tuple[Content, bool]  # a node for a stage: what it can take before, and whether the stage before stands on it
Run = tuple[Seat, ...]

_Choice = Callable[[int, tuple[Content, ...]], Content | None]


class Runs:
    """Computes runs for one chain, and caches them by stock and stage."""

    def __init__(self, contents: Contents) -> None:
        """Prepare the runs over nodes with these contents."""
        self._contents = contents
        self._kind_of = contents.kind_of
        self._is_one_each = contents.is_one_each
        self.of = cache(self._of)
        self.rest = cache(self._rest)
        self._num_in_a_row = cache(self._reckon_in_a_row)

    def _of(self, stock: Stock, stage: int) -> list[Run]:
        """Return the nodes of the longest runs of stages from `stage` on."""
        if self._is_one_each:
            runs = [self._matched(stock, stage)]
        else:
            ways = (self._seated(stock, stage, choose) for choose in (self._least_of_use, self._longest_held))
            runs = [run for run, _ in groupby(ways)]
        return [run for run in runs if run]

    def _rest(self, stock: Stock, stage: int, run: Run) -> Stock:
        """Return the rest of a stock after a run from `stage` on has taken its nodes."""
        left = Counter(dict(stock))
        for kind, (content, _) in zip(self._kind_of[stage:], run, strict=False):
            left[content] -= 1
            left[self._contents.after(content, kind)] += 1
        return tuple(sorted((content, number) for content, number in left.items() if number and content != FULL))

    def _matched(self, stock: Stock, stage: int) -> Run:
        """Match stages with nodes that take one stage each."""
        matching, kinds = _Matching(self._contents, stock), self._kind_of[stage:]
        length = next((number for number, kind in enumerate(kinds) if not matching.is_seated(kind, set())), len(kinds))
        return tuple((matching.hand_out(kind), False) for kind in kinds[:length])

    def _seated(self, stock: Stock, stage: int, choose: _Choice) -> Run:
        """Fill nodes one after another: stay on a node as long as it can take the next stage."""
        left, run, here = Counter(dict(stock)), list[Seat](), FULL
        for number, kind in enumerate(self._kind_of[stage:], start=stage):
            stays = self._contents.counts[here][kind] > 0
            content = here if stays else choose(number, tuple(+left))
            if content is None:
                break
            run.append((content, stays))
            here = self._contents.after(content, kind)
            left[content] -= 1
            left[here] += 1
        return tuple(run)

    def _least_of_use(self, stage: int, there: tuple[Content, ...]) -> Content | None:
        """Choose the node that fits the fewest other kinds."""
        return next(iter(self._contents.by_use(self._kind_of[stage], there)), None)

    def _longest_held(self, stage: int, there: tuple[Content, ...]) -> Content | None:
        """Choose the node that can take the most stages in a row from here on."""
        fitting = self._contents.by_use(self._kind_of[stage], there)
        return max(fitting, key=lambda content: self._num_in_a_row(content, stage), default=None)

    def _reckon_in_a_row(self, content: Content, stage: int) -> int:
        for number, kind in enumerate(self._kind_of[stage:]):
            if not self._contents.counts[content][kind]:
                return number
            content = self._contents.after(content, kind)
        return len(self._kind_of) - stage


class _Matching:
    """A bipartite matching of stages and nodes that take one each, grown by augmenting paths."""

    def __init__(self, contents: Contents, stock: Stock) -> None:
        self._contents = contents
        self._there = tuple(content for content, _ in stock)
        self._free = dict(stock)
        self._held: dict[Content, Counter[int]] = {content: Counter() for content in self._there}  # by which kinds

    def is_seated(self, kind: int, tried: set[int]) -> bool:
        """Match one more stage of a kind; `tried` are the kinds already on the augmenting path."""
        tried.add(kind)
        for content in self._contents.by_use(kind, self._there):
            if self._free[content]:
                self._free[content] -= 1
                self._held[content][kind] += 1
                return True
            for other, number in self._held[content].items():
                if number and other not in tried and self.is_seated(other, tried):
                    self._held[content][other] -= 1
                    self._held[content][kind] += 1
                    return True
        return False

    def hand_out(self, kind: int) -> Content:
        """Return a node matched with a kind, the least versatile first, so that a shortened run leaves the others."""
        content = next(each for each in self._contents.by_use(kind, self._there) if self._held[each][kind])
        self._held[content][kind] -= 1
        return content
