"""Places a chain of stages with different requests by a bounded search.

Stages may differ in what they request and in which nodes they may go to, so that a domain's room
is no single number and the exact method of `uniform_chain` does not apply; where several ranks
share a node the question is bin packing. `search` does the bounded search.

Of a large cluster the closest domains that may hold the chain are searched, at each level the
tightest `_DOMAINS`, and in each of them the `_LEAVES` that can take the longest runs.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pipelinejob.fabric.topology import Topology
from pipelinejob.placement.capacity import Capacity, Demand
from pipelinejob.placement.found import Found, Limits
from pipelinejob.placement.mixed_chain.bounds import Bounds
from pipelinejob.placement.mixed_chain.contents import Contents
from pipelinejob.placement.mixed_chain.leaves import Leaf, by_domain, leaves_of
from pipelinejob.placement.mixed_chain.runs import Runs
from pipelinejob.placement.mixed_chain.scarcest_first import ScarcestFirst
from pipelinejob.placement.mixed_chain.search import ChainSearch
from pipelinejob.placement.mixed_chain.stage_kinds import StageKinds
from pipelinejob.placement.prices import Path, Prices

_INFINITE = float("inf")
_DOMAINS = 4
_LEAVES = 128
_EFFORT = 8_000  # stages looked at by one search: some thousandths of a second
_LEAST_BUDGET = 100  # leaves tried
_LATER, _LATER_LEAST = 20, 30  # times less for each further search for a chain that leaves more room


class MixedChain:
    """Chains of stages of several kinds."""

    def __init__(
        self, topology: Topology, demands: Sequence[Demand], room: Capacity, prices: Prices, *, share: float = 1.0
    ) -> None:
        """Prepare to place these stages with a share of the usual effort."""
        self._prices = prices
        self._num_levels = prices.num_depths - 1
        self._budget = max(_LEAST_BUDGET, int(share * _EFFORT / len(demands)))
        self._is_first = True
        self._contents = contents = Contents(StageKinds(demands))
        self._wanted = Counter(contents.kind_of)
        self._leaves = leaves_of(topology, room, contents)
        self._runs = Runs(contents)
        self._bounds = Bounds(contents, prices)
        self._searches: dict[Path, ChainSearch] = {}
        places = by_domain(((), contents.counts_in(leaf.stock)) for leaf in self._leaves).get((), (0,))
        self._scarcest = places.index(min(places))

    def rooms(self, depth: int) -> dict[Path, int]:
        """Count the room of each domain of a depth for stages of the scarcest kind."""
        rooms: dict[Path, int] = {}
        for leaf in self._leaves:
            for node, content in leaf.nodes.items():
                count = self._contents.counts[content][self._scarcest]
                rooms[node[:depth]] = rooms.get(node[:depth], 0) + count
        return rooms

    @property
    def ties_s(self) -> float:
        """The most that tie-breaks add to a chain's cost: there are none."""
        return 0.0

    def least(self, *, depth: int, limits: Limits | None = None, within: float = _INFINITE) -> Found | None:
        """Return the cheapest chain within one domain of a depth or deeper that the search finds."""
        limits = limits or {}
        best: Found | None = None
        for domain in self._domains(depth, limits):
            search = self._search(domain)
            if search.least_s > within or (best is not None and search.least_s >= best.cost):
                continue
            found = search.best_chain(self._budget, limits, below=_INFINITE if best is None else best.cost)
            if found is None and best is None and self._is_first:
                found = self._scarcest_first(domain)
            best = found or best
        if self._is_first:  # what follows asks again under limits, and has a chain to fall back to
            self._is_first, self._budget = False, max(_LATER_LEAST, self._budget // _LATER)
        return best

    def _search(self, domain: Path) -> ChainSearch:
        if domain not in self._searches:
            leaves = self._leaves_in(domain)
            behind_s = self._bounds.behind_s(leaves)
            self._searches[domain] = ChainSearch(leaves, self._contents, self._runs, self._prices, behind_s)
        return self._searches[domain]

    def _scarcest_first(self, domain: Path) -> Found | None:
        chain = ScarcestFirst(self._leaves_in(domain), self._contents).chain(self._budget)
        return None if chain is None else Found(cost=self._prices.chain_s(chain), walk=lambda: chain)

    def _domains(self, depth: int, limits: Limits) -> Iterator[Path]:
        """Yield the domains that may hold the chain, the closest first, of each level the tightest."""
        emptied = {limit: most for limit, most in limits.items() if not most}
        inside = (leaf for leaf in self._leaves if not any(leaf.path[: len(limit)] == limit for limit in emptied))
        leaves = [leaf.limited(emptied, self._contents) for leaf in inside]
        for level in range(self._num_levels, depth - 1, -1):
            fitting = sorted(
                (max(counts), path) for path, counts in self._rooms_by_kind(leaves, level) if self._holds(counts)
            )
            for _, path in fitting[: None if level == depth else _DOMAINS]:
                yield path

    def _holds(self, counts: Sequence[int]) -> bool:
        return all(counts[kind] >= wanted for kind, wanted in self._wanted.items())

    def _rooms_by_kind(self, leaves: Sequence[Leaf], level: int) -> Iterable[tuple[Path, Sequence[int]]]:
        """Count the room of each domain of a level, for each kind alone."""
        if level == self._num_levels:
            large = {number: counts for number, counts in enumerate(self._contents.counts) if self._holds(counts)}
            nodes = ((node, content) for leaf in leaves if large for node, content in leaf.nodes.items())
            return ((node, large[content]) for node, content in nodes if content in large)
        return by_domain((leaf.path[:level], self._contents.counts_in(leaf.stock)) for leaf in leaves).items()

    def _leaves_in(self, domain: Path) -> list[Leaf]:
        """Return the domain's leaves that can take the longest runs; for a node, its leaf with that node alone."""
        inside = [leaf for leaf in self._leaves if leaf.path[: len(domain)] == domain[: len(leaf.path)]]
        if len(domain) == self._num_levels:
            return [Leaf(leaf.path, {domain: leaf.nodes[domain]}) for leaf in inside]
        best = sorted(inside, key=lambda leaf: (-sum(self._contents.counts_in(leaf.stock)), leaf.path))[:_LEAVES]
        return sorted(best, key=lambda leaf: leaf.path)
