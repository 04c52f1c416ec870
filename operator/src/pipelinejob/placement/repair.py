"""Replaces lost nodes close by, keeping the chain's order; healthy stages move only if that pays off.

All lost nodes are one problem. A replica's surviving nodes, in order, are a chain with gaps; new
nodes are inserted into it wherever that is cheapest. In the gaps themselves no healthy stage
moves. Elsewhere the stages between shift by one node each, which is worth it where what the
shorter chain saves, over the steps that are left, is more than what it takes those stages to load
their state anew.

The search goes along the chain and keeps the `_WIDTH` cheapest beginnings with the same number of
new nodes, each with nodes near its ends: exact where few nodes were lost, and a bounded search
beyond. It is held against placing the whole job anew, with every moved stage's reload.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from itertools import islice
from math import inf

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.contract.plan import Placement
from pipelinejob.fabric.network import common_depth
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Capacity, Demand
from pipelinejob.placement.job import Job, Outcome, chains_of
from pipelinejob.placement.prices import Path, Prices, ring_depth
from pipelinejob.spec.job import TopologyScope
from pipelinejob.spec.network.objective import Objective

_WIDTH = 8
_NEAR = 2  # nodes of each distance that are tried


def repair(
    demands: Sequence[Demand],
    topology: Topology,
    nodes: Sequence[NodeInfo],
    *,
    before: Placement,
    scope: TopologyScope | None = None,
    prices: Prices | None = None,
    reload_s: float = inf,
    steps_left: int = 1,
    threshold: float = 0.01,
    step_s: float | None = None,
    objective: Objective = Objective.AUTO,
) -> Placement:
    """Place every rank on a node again, after some nodes were lost, or some of their room was given to others.

    `nodes` are those there are now, with free what would be if the whole job had left. `reload_s`
    is what a healthy stage that moves costs once, to be earned back in `steps_left`; by default
    none moves unless it must. The rest is as with `placement.place`; raises NoPlacementError if
    the ranks do not fit now.
    """
    usable = topology.usable(nodes)
    job = Job(
        chains=chains_of(demands),
        topology=topology,
        nodes=usable,
        scope=scope or TopologyScope(),
        given=prices,
        slack=0.0 if prices is None else threshold * (step_s or prices.step_s or 0.0),
        objective=objective,
    )
    back = come_back(demands, usable, before=before)
    stood = {rank: topology.paths[node] for rank, node in back.items() if node in topology.paths}
    search = _Repair(job, stood, reload_s=reload_s, steps_left=steps_left)
    mended = search.mended()
    try:
        fresh = [job.outcome(each) for each in job.layouts()]
    except NoPlacementError:
        if mended is None:
            raise
        fresh = []
    outcomes = [*([mended] if mended is not None else []), *fresh]
    best = min(outcomes, key=lambda outcome: (search.cost(outcome), outcome.penalty_s))
    return job.described(best, job.least(outcomes))


def come_back(demands: Sequence[Demand], nodes: Sequence[NodeInfo], *, before: Placement) -> dict[tuple[int, int], str]:
    """Return the ranks, by replica and stage, that can go back to where they stood, with their nodes.

    A node that is gone, or takes nobody now, takes none back; one on which others stand by now as
    many as there is room for.
    """
    room, found = Capacity(nodes), {}
    of_rank = {(each.replica, each.stage): each for each in demands}
    for each in before.assignments:
        demand = of_rank.get((each.replica, each.stage))
        if demand is not None and room.fits(demand, each.node):
            room.take(demand, each.node)
            found[each.replica, each.stage] = each.node
    return found


@dataclass(frozen=True, slots=True)
class _Chain:
    """A prefix of a repaired chain: its last node, the prefix before that, and its cost so far."""

    cost: float = 0.0
    path: Path | None = None
    before: "_Chain | None" = None
    length: int = 0
    new: tuple[Path, ...] = ()  # its new nodes

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return the nodes in order."""
        paths: list[Path] = []
        chain: _Chain | None = self
        while chain is not None and chain.path is not None:
            paths.append(chain.path)
            chain = chain.before
        return tuple(reversed(paths))


class _Repair:
    def __init__(self, job: Job, stood: Mapping[tuple[int, int], Path], *, reload_s: float, steps_left: int) -> None:
        self._job = job
        self._prices = job.prices
        self._stood = stood
        self._reload_s = reload_s
        self._steps_left = steps_left
        self._room = Capacity(job.nodes)
        self._rooms: dict[tuple[int, int, Path], int] = {}

    def cost(self, outcome: Outcome) -> float:
        """Return the seconds that a placement costs over all remaining steps, with the moves to it."""
        moving_s = sum(
            self._moving_s(demand, path)
            for chain, paths in zip(self._job.chains, outcome.replicas, strict=True)
            for demand, path in zip(chain, paths, strict=True)
        )
        return self._steps_left * outcome.penalty_s + moving_s

    def _moving_s(self, demand: Demand, path: Path) -> float:
        stood = self._stood.get((demand.replica, demand.stage))
        return 0.0 if stood is None or stood == path else self._reload_s

    def mended(self) -> Outcome | None:
        """Return the cheapest placement that inserts new nodes into the chains with gaps; None if there is none."""
        for chain in self._job.chains:  # a healthy rank's place is nobody else's
            for demand in chain:
                stood = self._stood.get((demand.replica, demand.stage))
                if stood is not None:
                    self._room.take(demand, stood[-1])
        replicas = []
        for chain in self._job.chains:
            paths = self._mended(chain)
            if paths is None:
                return None
            replicas.append(paths)
        return self._job.outcome(tuple(replicas))

    def _mended(self, chain: Sequence[Demand]) -> tuple[Path, ...] | None:
        healthy = [path for demand in chain if (path := self._stood.get((demand.replica, demand.stage))) is not None]
        if len(healthy) == len(chain):
            return tuple(healthy)
        if not healthy or len({path[: self._job.required_depth] for path in healthy}) > 1:
            return None
        beginnings = [_Chain()]
        for _ in chain:
            longer = (each for beginning in beginnings for each in self._longer(beginning, chain, healthy))
            beginnings = _cheapest(each for each in longer if each.cost < inf)
        ends = sorted((self._closed(each), each.new, each.paths) for each in beginnings)
        return next((paths for _, _, paths in ends if self._takes(chain, paths)), None)

    def _longer(self, beginning: _Chain, chain: Sequence[Demand], healthy: Sequence[Path]) -> Iterator[_Chain]:
        """Extend a prefix by the next healthy node, or by a new one close to it or to the last."""
        demand = chain[beginning.length]
        num_healthy = beginning.length - len(beginning.new)
        following = healthy[num_healthy] if num_healthy < len(healthy) else None
        if following is not None:
            yield self._with(beginning, demand, following, new=())
        moving_s = self._reload_s if (demand.replica, demand.stage) in self._stood else 0.0
        if len(beginning.new) < len(chain) - len(healthy) and moving_s < inf:
            ends = [path for path in (beginning.path, following, *self._peers(demand)[:1]) if path is not None]
            for path in self._near(demand, ends, beginning):
                yield self._with(beginning, demand, path, new=(path,))

    def _with(self, beginning: _Chain, demand: Demand, path: Path, *, new: tuple[Path, ...]) -> _Chain:
        cost = beginning.cost + self._moving_s(demand, path) + self._steps_left * self._widening_s(demand, path)
        if beginning.path is not None:
            cost += self._steps_left * self._prices.chain[beginning.length - 1][common_depth(beginning.path, path)]
        return _Chain(cost, path, beginning, beginning.length + 1, beginning.new + new)

    def _widening_s(self, demand: Demand, path: Path) -> float:
        """Return the seconds by which a new member makes a stage's ring more expensive than the most expensive one."""
        peers = self._peers(demand)
        if not peers or self._stood.get((demand.replica, demand.stage)) == path:
            return 0.0
        return max(0.0, self._prices.ring[demand.stage][ring_depth([*peers, path])] - self._dearest_ring_s)

    def _peers(self, demand: Demand) -> list[Path]:
        """Return the nodes of the healthy copies of a stage in other replicas."""
        ranks = ((chain[0].replica, demand.stage) for chain in self._job.chains)
        return [self._stood[rank] for rank in ranks if rank[0] != demand.replica and rank in self._stood]

    @cached_property
    def _dearest_ring_s(self) -> float:
        """The price of the most expensive ring among the ranks that were not lost."""
        members: dict[int, list[Path]] = {}
        for (_, stage), path in self._stood.items():
            members.setdefault(stage, []).append(path)
        return max((self._prices.ring[stage][ring_depth(paths)] for stage, paths in members.items()), default=0.0)

    def _near(self, demand: Demand, ends: Sequence[Path], beginning: _Chain) -> list[Path]:
        """Return free nodes at each distance from the ends."""
        near: dict[Path, None] = {}
        for end in ends:
            for depth in range(len(end), self._job.required_depth - 1, -1):
                free = (path for path in self._free.get(end[:depth], ()) if self._has_room(demand, path, beginning))
                near.update((path, None) for path in islice(free, _NEAR))
        return list(near)

    @cached_property
    def _free(self) -> Mapping[Path, Sequence[Path]]:
        """Map each domain to its nodes with room, those of the tightest leaf that holds all new ranks first."""
        names = set().union(*(self._room.counts(kind, most=1) for kind in self._job.kinds))
        paths = [self._job.topology.paths[name] for name in names]
        by_leaf = Counter(path[:-1] for path in paths)
        num_new = sum(map(len, self._job.chains)) - len(self._stood)

        def rank(path: Path) -> tuple[bool, int, Path]:
            spare = by_leaf[path[:-1]] - num_new
            return spare < 0, abs(spare), path

        free: dict[Path, list[Path]] = {}
        for path in sorted(paths, key=rank):
            for depth in range(len(path) + 1):
                free.setdefault(path[:depth], []).append(path)
        return free

    def _has_room(self, demand: Demand, path: Path, beginning: _Chain) -> bool:
        """Tell whether a node has room for one more new rank; a quick test, which `_takes` repeats exactly."""
        key = (demand.replica, demand.stage, path)
        count = self._rooms.get(key)
        if count is None:
            count = self._rooms[key] = self._room.count(demand, path[-1])
        return count > beginning.new.count(path)

    def _closed(self, chain: _Chain) -> float:
        """Return the cost of the whole chain, with the link from its last stage to its first."""
        paths = chain.paths
        return chain.cost + self._steps_left * self._prices.wrap[common_depth(paths[-1], paths[0])]

    def _takes(self, chain: Sequence[Demand], paths: Sequence[Path]) -> bool:
        """Reserve the chain's new places if there is room once its healthy stages have left theirs."""
        room = self._room.copy()
        for demand in chain:
            stood = self._stood.get((demand.replica, demand.stage))
            if stood is not None:
                room.give_back(demand, stood[-1])
        for demand, path in zip(chain, paths, strict=True):
            if not room.fits(demand, path[-1]):
                return False
            room.take(demand, path[-1])
        self._room, self._rooms = room, {}
        return True


def _cheapest(chains: Iterable[_Chain]) -> list[_Chain]:
    """Keep the cheapest prefixes for each number of new nodes."""
    by_number: dict[int, list[_Chain]] = {}
    for chain in chains:
        by_number.setdefault(len(chain.new), []).append(chain)
    return [
        chain
        for alike in by_number.values()
        for chain in nsmallest(_WIDTH, alike, key=lambda each: (each.cost, each.new))
    ]
