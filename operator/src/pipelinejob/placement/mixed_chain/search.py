"""Branch-and-bound search for a chain of stages with different requests, leaf by leaf, within a budget.

The search walks the chain leaf by leaf (a leaf: the domains just above the nodes), each time
trying the longest run of stages that the next leaf can take first, shorter runs after, and drops
what cannot cost less than the best chain found. It ends when nothing is left to try, when a chain
meets the bound that counts alone set, which makes it optimal, or when the budget is spent. Leaves
are stocks of nodes all the while (`leaves`); the nodes of a chain are named when it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pipelinejob.fabric.network import common_depth
from pipelinejob.placement.found import Found, Limits
from pipelinejob.placement.mixed_chain.contents import Contents
from pipelinejob.placement.mixed_chain.leaves import Leaf
from pipelinejob.placement.mixed_chain.partial_chain import PartialChain, named
from pipelinejob.placement.mixed_chain.runs import Run, Runs
from pipelinejob.placement.prices import Path, Prices


@dataclass(frozen=True, slots=True, order=True)
class _Option:
    """A run that may come next; the least is tried first."""

    rank: tuple[int, int, int, Path]
    leaf: Leaf = field(compare=False)
    run: Run = field(compare=False)


class ChainSearch:
    """The search for one chain over some leaves."""

    def __init__(
        self, leaves: Sequence[Leaf], contents: Contents, runs: Runs, prices: Prices, behind_s: Sequence[float]
    ) -> None:
        """Prepare the search; `behind_s` bounds from below the cost of the boundaries behind each stage."""
        self._leaves = leaves
        self._contents = contents
        self._runs = runs
        self._prices = prices
        self._behind_s = behind_s
        self._num_stages = len(contents.kind_of)

    @property
    def least_s(self) -> float:
        """A lower bound of every chain's price."""
        return self._behind_s[0]

    def best_chain(self, budget: int, limits: Limits, *, below: float) -> Found | None:
        """Return the cheapest chain below a price, None if there was none among those tried."""
        best: Found | None = None
        leaves = [leaf.limited(limits, self._contents) for leaf in self._leaves]
        chain = PartialChain(leaves, self._runs, self._prices, limits)
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

    def _bound_s(self, chain: PartialChain) -> float:
        """Return a lower bound of the price of every completion; of a whole chain, its price."""
        stage = chain.num_stages
        if stage == self._num_stages:
            return chain.whole_s
        to_next_s = self._prices.chain[stage - 1][self._prices.num_depths - 3]  # it stands in another leaf
        return chain.cost_s + to_next_s + self._behind_s[stage]

    def _options(self, leaves: Sequence[Leaf], chain: PartialChain) -> Iterator[tuple[Leaf, Run]]:
        """Yield the runs that may follow: the closest leaf first, then the longest run, then the smallest leaf."""
        options = sorted(self._longest(leaves, chain))
        yield from ((option.leaf, option.run) for option in options)
        for option in options:
            yield from ((option.leaf, option.run[:length]) for length in range(len(option.run) - 1, 0, -1))

    def _longest(self, leaves: Sequence[Leaf], chain: PartialChain) -> Iterator[_Option]:
        here, left = chain.leaf, chain.left_within_limits()
        for leaf in leaves:
            if leaf.path == here:
                continue
            bearing = [most for limit, most in left.items() if leaf.path[: len(limit)] == limit]
            distance = 0 if here is None else -common_depth(here, leaf.path)
            for run in self._runs.of(chain.stocks[leaf.path], chain.num_stages):
                if length := min([len(run), *bearing]):
                    yield _Option((distance, -length, len(leaf.nodes), leaf.path), leaf, run[:length])
