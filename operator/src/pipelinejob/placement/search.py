"""Searches for a chain of unlike stages, leaf by leaf, within a budget.

The search walks the chain leaf by leaf (a leaf: the domains just above the nodes), each time trying the longest run of
stages that the next leaf can take first, shorter runs after, and drops what cannot cost less than the best chain found.
It ends when nothing is left to try, when a chain meets the bound that counts alone set, which makes it optimal, or when
the budget is spent. Leaves are stocks of nodes all the while (`placement/leaves.py`); the nodes of a chain are named
when it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pipelinejob.network import common_depth
from pipelinejob.placement.chain import Chain, named
from pipelinejob.placement.contents import Contents
from pipelinejob.placement.leaves import Leaf
from pipelinejob.placement.like import Found, Limits
from pipelinejob.placement.runs import Run, Runs
from pipelinejob.prices import Path, Prices


@dataclass(frozen=True, slots=True, order=True)
class _Option:
    """A run that may come next, the one to try first being the least."""

    rank: tuple[int, int, int, Path]
    leaf: Leaf = field(compare=False)
    run: Run = field(compare=False)


class ChainSearch:
    """The search for one chain over some leaves."""

    def __init__(
        self, leaves: Sequence[Leaf], contents: Contents, runs: Runs, prices: Prices, behind_s: Sequence[float]
    ) -> None:
        """Take the leaves, what they can take, what boundaries cost, and what those behind each stage do at least."""
        self._leaves = leaves
        self._contents = contents
        self._runs = runs
        self._prices = prices
        self._behind_s = behind_s
        self._num_stages = len(contents.kind_of)

    @property
    def least_s(self) -> float:
        """Give a price that no chain is below."""
        return self._behind_s[0]

    def best_chain(self, budget: int, limits: Limits, *, below: float) -> Found | None:
        """Give the cheapest chain below a price, None if there was none among those tried."""
        best: Found | None = None
        leaves = [leaf.limited(limits, self._contents) for leaf in self._leaves]
        chain = Chain(leaves, self._runs, self._prices, limits)
        options = [self._options(leaves, chain)]  # of each run of the chain, and of the next
        for _ in range(budget):
            if len(chain.pieces) == len(options):
                chain.withdraw()
            option = next(options[-1], None)
            if option is None:
                options.pop()
                if not options:
                    break
                continue
            chain.lengthen(*option)
            price_s = self._bound_s(chain)
            if price_s >= below:
                continue
            if chain.num_stages < self._num_stages:
                options.append(self._options(leaves, chain))
                continue
            below = price_s
            best = Found(cost=price_s, walk=partial(named, tuple(chain.pieces), self._contents))
            if price_s <= self.least_s:
                break
        return best

    def _bound_s(self, chain: Chain) -> float:
        """Give a price that no completion of the chain is below; that of the chain where it is whole."""
        stage = chain.num_stages
        if stage == self._num_stages:
            return chain.whole_s
        to_next_s = self._prices.chain[stage - 1][self._prices.num_depths - 3]  # it stands in another leaf
        return chain.cost_s + to_next_s + self._behind_s[stage]

    def _options(self, leaves: Sequence[Leaf], chain: Chain) -> Iterator[tuple[Leaf, Run]]:
        """Give the runs that may follow: the closest leaf first, then the longest run, then the smallest leaf."""
        options = sorted(self._longest(leaves, chain))
        yield from ((option.leaf, option.run) for option in options)
        for option in options:
            yield from ((option.leaf, option.run[:length]) for length in range(len(option.run) - 1, 0, -1))

    def _longest(self, leaves: Sequence[Leaf], chain: Chain) -> Iterator[_Option]:
        here, left = chain.leaf, chain.left_within_limits()
        for leaf in leaves:
            if leaf.path == here:
                continue
            bearing = [most for limit, most in left.items() if leaf.path[: len(limit)] == limit]
            distance = 0 if here is None else -common_depth(here, leaf.path)
            for run in self._runs.of(chain.stocks[leaf.path], chain.num_stages):
                if length := min([len(run), *bearing]):
                    yield _Option((distance, -length, len(leaf.nodes), leaf.path), leaf, run[:length])
