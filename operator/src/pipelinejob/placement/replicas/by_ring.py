"""Layouts of several replicas in which the rings between them get the closest links.

Two ways are tried. Chain by chain: each replica's stages stand together, so that its boundaries
use the closest links, and the copies of a stage, which sum its gradients in a ring, stand far
apart. Ring by ring: at each level of the topology, all copies of a stage are put into one domain,
neighbouring stages next to each other, so that the rings use the close links. In such a domain,
and on nodes that hold several ranks, every replica's stages follow each other in the same order,
so that members of a ring stand at the same place of their nodes: on the same rail.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf

from pipelinejob.fabric.topology import Domain
from pipelinejob.placement.found import Found, Limits
from pipelinejob.placement.goal import Goal
from pipelinejob.placement.prices import Path, Prices
from pipelinejob.placement.uniform_chain.placer import UniformChain

Replicas = tuple[tuple[Path, ...], ...]  # each one's nodes in order of its stages


def by_ring(
    root: Domain, rooms: dict[Path, int], prices: Prices, *, num_replicas: int, goal: Goal, depth: int
) -> Iterator[Replicas]:
    """Yield layouts with all copies of a stage in one domain, for each level; each chain in one domain of `depth`."""
    for level in range(max(1, depth), prices.num_depths):
        groups = _groups(rooms, level, num_replicas)
        placer = _Rings(UniformChain(root, groups, _within(prices, level)), rooms, num_replicas)
        found = replace(goal, num_levels=level).chain(placer, depth) if groups else None
        if found is None:
            continue
        domains = found.paths[::num_replicas]
        yield _filled(domains, rooms, num_replicas, chains_first=True)
        yield _filled(domains, rooms, num_replicas, chains_first=False)


@dataclass(frozen=True, slots=True)
class _Rings:
    """Finds a domain for each ring; room is counted in ranks, also where no whole ring fits."""

    rings: UniformChain
    ranks: Mapping[Path, int]  # the room of each node
    size: int

    def least(self, *, depth: int, limits: Limits | None = None, within: float = inf) -> Found | None:
        """Return the cheapest domains for the rings, one for each rank in order of the stages."""
        of_rings = {path: most // self.size for path, most in (limits or {}).items()}
        found = self.rings.least(depth=depth, limits=of_rings, within=within)
        if found is None:
            return None
        return Found(cost=found.cost, walk=lambda: [path for path in found.paths for _ in range(self.size)])

    def rooms(self, depth: int) -> dict[Path, int]:
        """Return the room of each domain of a depth in ranks."""
        return _totals(self.ranks, depth)

    @property
    def ties_s(self) -> float:
        return self.rings.ties_s


def _totals(rooms: Mapping[Path, int], depth: int) -> dict[Path, int]:
    totals: dict[Path, int] = {}
    for path, room in rooms.items():
        totals[path[:depth]] = totals.get(path[:depth], 0) + room
    return totals


def _groups(rooms: dict[Path, int], level: int, size: int) -> dict[Path, int]:
    """Count the groups of ranks that each domain of a level has room for."""
    totals = _totals(rooms, level)
    return {path: total // size for path, total in totals.items() if total >= size}


def _within(prices: Prices, level: int) -> Prices:
    """Return the prices of crossing between domains of a level, above the price of staying in one."""
    return replace(
        prices,
        chain=tuple(tuple(price - each[level] for price in each[: level + 1]) for each in prices.chain),
        ring=tuple(each[: level + 1] for each in prices.ring),
        wrap=tuple(price - prices.wrap[level] for price in prices.wrap[: level + 1]),
    )


def _filled(domains: Sequence[Path], rooms: dict[Path, int], num_replicas: int, *, chains_first: bool) -> Replicas:
    """Place the ranks of each domain's stages on its nodes, in order: chain by chain, or ring by ring."""
    chains: list[list[Path]] = [[] for _ in range(num_replicas)]
    for domain, stages in groupby(domains):
        slots = _slots(domain, rooms)
        ranks = [(replica, stage) for stage, _ in enumerate(stages) for replica in range(num_replicas)]
        places = dict(zip(sorted(ranks) if chains_first else ranks, slots, strict=False))
        for rank in sorted(ranks):
            chains[rank[0]].append(places[rank])
    return tuple(map(tuple, chains))


def _slots(domain: Path, rooms: dict[Path, int]) -> Iterator[Path]:
    inside = sorted(path for path in rooms if path[: len(domain)] == domain)
    return (path for path in inside for _ in range(rooms[path]))
