"""Places a chain of stages with equal requests: the cheapest one, under limits on what single domains may take.

The tree of domains is walked once to count its room; the cost of a run of stages in a domain is in
the tables of the domain's kind (`tables`), and nodes are looked up by name in the chosen domains
alone.

Exact where all boundaries cost the same, and where the chain stands in one domain over nodes.
Where boundaries cost more towards one end, domains are walked in order of their room, which at
several levels at once need not be the best.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import repeat

import numpy as np

from pipelinejob.fabric.topology import Domain
from pipelinejob.placement.found import Found, Limits
from pipelinejob.placement.prices import Path, Prices
from pipelinejob.placement.uniform_chain.tables import Costs, Kind, Tables

# Beside the price, all in shares of what is priced and far below anything that is worth a second:
# of equal prices the chain with fewer crossings counts, of these the one in domains with less
# room.
_CROSSING, _ROOM = 1e-7, 1e-9
_INFINITE = float("inf")


@dataclass(slots=True)
class _Subtree:
    """A domain with room: its nodes, or its parts."""

    path: Path
    parent: "_Subtree | None"
    parts: list["_Subtree"] = field(default_factory=list)
    nodes: dict[Path, int] = field(default_factory=dict)
    kind: Kind = 0


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Domains by cost: the cheapest ones, whose cost is known, and a heap of the others, by cost or lower bound."""

    known: list[tuple[float, Path]]
    pending: list[tuple[float, Path, bool]]


class UniformChain:
    """Finds chains of stages that all fit on the same nodes; the room shrinks as chains are taken."""

    def __init__(self, root: Domain, rooms: Mapping[Path, int], prices: Prices) -> None:
        """Prepare the tree of domains; `rooms` counts the stages that each node has room for.

        The nodes may also be larger domains: those at the last depth that there are prices for.
        """
        self._num_stages = prices.num_stages
        self._num_levels = prices.num_depths - 1
        self._wrap = prices.wrap
        total = sum(rooms.values())
        self._unit = _unit(prices)
        self._use = _use(prices, total)
        self._tables = Tables(_costs(prices), self._use, num_stages=self._num_stages)
        self._sites: dict[Path, _Subtree] = {}
        self._by_depth: list[list[_Subtree]] = [[] for _ in range(self._num_levels)]
        self._taken: Counter[Path] = Counter()
        self._by_cost: dict[int, _Ranking] = {}
        self._alone: list[tuple[float, Path]] | None = None
        self._site(root, None, rooms)

    # What there is

    def _site(self, domain: Domain, parent: _Subtree | None, rooms: Mapping[Path, int]) -> _Subtree | None:
        """Make the tree of the domains with room."""
        site = _Subtree(domain.path, parent)
        if len(domain.path) == self._num_levels - 1:
            site.nodes = {child.path: rooms[child.path] for child in domain.children if child.path in rooms}
        else:
            parts = (self._site(child, site, rooms) for child in domain.children)
            site.parts = [part for part in parts if part is not None]
        if not site.nodes and not site.parts:
            return None
        site.kind = self._kind(site)
        self._sites[site.path] = site
        self._by_depth[len(site.path)].append(site)
        return site

    def _kind(self, site: _Subtree) -> Kind:
        depth = len(site.path)
        if site.nodes:
            return self._tables.over_nodes(depth, [room for room in site.nodes.values() if room])
        return self._tables.over_parts(depth, [part.kind for part in site.parts if self._tables.room(part.kind)])

    def rooms(self, depth: int) -> dict[Path, int]:
        """Return the room of each domain of a depth, the last one being that of the nodes."""
        if depth == self._num_levels:
            return {path: room for site in self._by_depth[-1] for path, room in site.nodes.items()}
        return {site.path: self._tables.room(site.kind) for site in self._by_depth[depth]}

    @property
    def ties_s(self) -> float:
        """The most that breaking ties by room adds to a chain's cost."""
        return 2 * _ROOM * self._unit

    def take(self, paths: tuple[Path, ...]) -> None:
        """Take the room for one stage on each of these nodes."""
        self._taken.update(paths)
        self._change(Counter(paths), sign=-1)

    def give_all_back(self) -> None:
        """Restore all room that was taken."""
        self._change(self._taken, sign=1)
        self._taken.clear()

    def _change(self, counts: Mapping[Path, int], *, sign: int) -> None:
        touched: dict[Path, _Subtree] = {}
        for path, count in counts.items():
            site: _Subtree | None = self._sites[path[:-1]]
            assert site is not None, "a node's domain stays, even without room"
            site.nodes[path] += sign * count
            while site is not None:
                touched[site.path] = site
                site = site.parent
        for path in sorted(touched, key=len, reverse=True):
            touched[path].kind = self._kind(touched[path])
        self._by_cost, self._alone = {}, None

    # The cheapest chain

    def least(self, *, depth: int, limits: Limits | None = None, within: float = _INFINITE) -> Found | None:
        """Return the cheapest chain that stands in one domain of a depth or deeper; None if there is no room.

        One that costs more than `within` need not be found.
        """
        limits = limits or {}
        limited = self._limited(limits)
        too_little = [path for path, most in limits.items() if most < self._num_stages]

        def is_free(path: Path) -> bool:
            return not any(path[: len(each)] == each for each in too_little)

        best = next((each for each in self._ranked(depth) if each[1] not in limited and is_free(each[1])), None)
        for path, kind in limited.items():
            enough = within if best is None else min(within, best[0])
            if len(path) >= depth and is_free(path) and self._tables.bound(kind) <= enough:
                cost = self._whole(kind, self._sites[path])
                if cost < _INFINITE and (best is None or (cost, path) < best):
                    best = (cost, path)
        alone = next((each for each in self._large_nodes() if is_free(each[1])), None)
        if alone is not None and (best is None or alone[0] <= best[0]):
            return Found(cost=alone[0], walk=partial(repeat, alone[1], self._num_stages))
        if best is None:
            return None
        site = self._sites[best[1]]
        return Found(cost=best[0], walk=partial(self._walk, site, 0, self._num_stages, limited, limits))

    def _ranked(self, depth: int) -> Iterator[tuple[float, Path]]:
        """Yield the domains that hold the chain, the cheapest first; costs are computed in order of lower bounds."""
        if depth not in self._by_cost:
            sites = (site for at in range(depth, self._num_levels) for site in self._by_depth[at])
            bounds = [(self._tables.bound(site.kind), site.path, False) for site in sites]
            self._by_cost[depth] = _Ranking(known=[], pending=[each for each in bounds if each[0] < _INFINITE])
            heapify(self._by_cost[depth].pending)
        ranking, number = self._by_cost[depth], 0
        while number < len(ranking.known) or ranking.pending:
            if number < len(ranking.known):
                yield ranking.known[number]
                number += 1
                continue
            cost, path, is_exact = heappop(ranking.pending)
            if is_exact:
                ranking.known.append((cost, path))
            else:
                site = self._sites[path]
                heappush(ranking.pending, (self._whole(site.kind, site), path, True))

    def _large_nodes(self) -> list[tuple[float, Path]]:
        """Return the nodes that hold the chain, the cheapest first."""
        if self._alone is None:
            self._alone = sorted(
                (self._wrap[-1] + self._use[-1] * room + self._around(site), path)
                for site in self._by_depth[-1]
                for path, room in site.nodes.items()
                if room >= self._num_stages
            )
        return self._alone

    def _whole(self, kind: Kind, site: _Subtree) -> float:
        cost = self._tables.whole(kind)
        return cost if cost == _INFINITE else cost + self._wrap[len(site.path)] + self._around(site)

    def _around(self, site: _Subtree | None) -> float:
        """Return the tie-breaking cost of using a domain and those around it."""
        total = 0.0
        while site is not None:
            total += self._use[len(site.path)] * self._tables.room(site.kind)
            site = site.parent
        return total

    def _limited(self, limits: Limits) -> dict[Path, Kind]:
        """Return the kinds of the domains that limits affect: those limited, and all around them."""
        kinds: dict[Path, Kind] = {}
        around = {limit[:depth] for limit in limits for depth in range(len(limit) + 1)}
        for path in sorted(around, key=len, reverse=True):
            site = self._sites.get(path)
            if site is None:  # a node, which its domain looks after
                continue
            kind = self._kind_within(site, kinds, limits)
            kinds[path] = self._tables.with_most(kind, limits[path]) if path in limits else kind
        return kinds

    def _kind_within(self, site: _Subtree, kinds: Mapping[Path, Kind], limits: Limits) -> Kind:
        depth = len(site.path)
        if site.nodes:
            rooms = (min(room, limits.get(path, room)) for path, room in site.nodes.items())
            return self._tables.over_nodes(depth, [room for room in rooms if room])
        within = (kinds.get(part.path, part.kind) for part in site.parts)
        return self._tables.over_parts(depth, [kind for kind in within if self._tables.room(kind)])

    # Where it stands

    def _walk(self, site: _Subtree, start: int, end: int, kinds: Mapping[Path, Kind], limits: Limits) -> Iterator[Path]:
        """Yield the nodes of the stages, in order; of alike domains the first by name is taken."""
        kind = kinds.get(site.path, site.kind)
        shares = list(self._tables.shares(kind, start, end))
        if site.nodes:
            free = _by_value((min(room, limits.get(path, room)), path) for path, room in site.nodes.items())
            for room, first, last in shares:
                yield from [free[room].pop()] * (last - first)
            return
        parts = _by_value((kinds.get(part.path, part.kind), part.path) for part in site.parts)
        for part, first, last in shares:
            yield from self._walk(self._sites[parts[part].pop()], first, last, kinds, limits)


def _by_value(items: Iterator[tuple[int, Path]]) -> dict[int, list[Path]]:
    """Sort paths under their values, the first by name last, where it is popped from."""
    by_value: dict[int, list[Path]] = {}
    for value, path in sorted(items, reverse=True):
        by_value.setdefault(value, []).append(path)
    return by_value


def crossing_ties_s(prices: Prices) -> float:
    """Return the most that breaking ties by crossings adds to a chain's cost."""
    return 0.0 if prices.step_s is None else 2 * _CROSSING * prices.step_s


def _unit(prices: Prices) -> float:
    """Return the unit of tie-breaks: the step's seconds, or, where crossings are counted, the smallest price."""
    if prices.step_s is not None:
        return prices.step_s
    return min((price for boundary in prices.chain for price in boundary if price > 0), default=1.0)


def _costs(prices: Prices) -> Costs:
    """Return the prices by depth and boundary, with a little added for each crossing to break ties."""
    num_levels = prices.num_depths - 1
    costs: Costs = np.array(prices.chain).reshape(len(prices.chain), prices.num_depths).T[:num_levels]
    if prices.step_s is None:
        return costs  # they are crossings
    crossed = np.array([4.0 ** (num_levels - depth) - 1 for depth in range(num_levels)])
    each = _CROSSING * prices.step_s / (crossed.max() * max(1, len(prices.chain)))
    ties: Costs = each * crossed[:, None]
    return costs + ties


def _use(prices: Prices, total_room: int) -> list[float]:
    """Return, by depth, the cost of using a domain for each stage it has room for; coarser domains cost more."""
    each = _ROOM * _unit(prices) / max(1, total_room)
    return [0.0, *(each / 16.0**level for level in range(prices.num_depths - 1))]
