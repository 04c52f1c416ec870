"""A job to be placed: its chains of ranks, the layouts that are compared, and the one that is chosen."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.contract.plan import Assignment, Placement
from pipelinejob.fabric.network import common_depth
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Capacity, Demand, kinds_of
from pipelinejob.placement.found import Found, Placer
from pipelinejob.placement.goal import Goal
from pipelinejob.placement.headroom import Headroom, Largest
from pipelinejob.placement.mixed_chain.placer import MixedChain
from pipelinejob.placement.prices import Path, Prices, crossing_prices
from pipelinejob.placement.replicas.by_ring import Replicas, by_ring
from pipelinejob.placement.replicas.joint import JointReplicas
from pipelinejob.placement.replicas.one_chain import as_one_chain, with_seats_changed
from pipelinejob.placement.shortfall import Attempt, shortfall
from pipelinejob.placement.uniform_chain.placer import UniformChain, crossing_ties_s
from pipelinejob.spec.job import TopologyScope
from pipelinejob.spec.network.objective import Objective

_SCOPE = "spec.topology.pipeline"
_MOST_SWAPPED = 128  # ranks that may change their seats: the work grows with the square of them
_ALIKE = 1e-9  # of a step: prices that differ by less are one


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One layout of a job: its nodes, its price, and the room that it leaves in one domain of each level."""

    replicas: Replicas
    penalty_s: float
    left: tuple[Largest, ...]

    @property
    def tightness(self) -> tuple[int, ...]:
        """A sort key: what leaves more room comes first, the coarsest level counting most."""
        return tuple(-each.room for each in self.left)


@dataclass(frozen=True, kw_only=True)
class Job:
    chains: Sequence[Sequence[Demand]]
    topology: Topology
    nodes: Sequence[NodeInfo]
    scope: TopologyScope
    given: Prices | None
    slack: float
    objective: Objective

    @cached_property
    def prices(self) -> Prices:
        return self.given or crossing_prices(len(self.chains[0]), self.num_levels)

    @property
    def num_levels(self) -> int:
        return len(self.topology.levels)

    # What is looked for

    def placement(self) -> Placement:
        """Place the job by its objective, and price the placement.

        Raises NoPlacementError if it does not fit.
        """
        outcomes = [self.outcome(each) for each in self._closest_of(self.layouts())]
        if len(self.chains) > 1 and sum(map(len, self.chains)) <= _MOST_SWAPPED and self._alike is not None:
            promising = sorted({each.replicas for each in self._promising(outcomes)})
            changed = [with_seats_changed(each, self.prices) for each in promising]
            outcomes = [self.outcome(each) for each in self._closest_of([*promising, *changed])] + outcomes
        least = self.least(outcomes)
        return self.described(self._best(outcomes, least), least)

    def least(self, outcomes: Sequence[Outcome]) -> Outcome:
        """Return the cheapest layout; of equal ones the one that leaves most room."""
        return min(outcomes, key=lambda each: (self._rounded(each.penalty_s), each.tightness))

    def described(self, best: Outcome, least: Outcome) -> Placement:
        """Return the placement with its price, the least price, and the trade between them."""
        totals = [sum(counts) for counts in zip(*map(crossings, best.replicas), strict=True)]
        levels = [level.name for level in self.topology.levels]
        return Placement(
            assignments=tuple(
                Assignment(replica=demand.replica, stage=demand.stage, node=path[-1], path=path)
                for chain, paths in zip(self.chains, best.replicas, strict=True)
                for demand, path in zip(chain, paths, strict=True)
            ),
            crossings=dict(zip(levels, totals, strict=True)),
            penalty_s=best.penalty_s if self.given else None,
            best_penalty_s=least.penalty_s if self.given else None,
            room_left={level: largest.room for level, largest in zip(levels, best.left, strict=True)},
            trade=self._trade(best, least) if self.given else None,
        )

    def _promising(self, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Yield the best layouts, and roomier ones that would win if swaps made them cheaper."""
        least = self.least(outcomes)
        best = self._best(outcomes, least)
        yield from (least, best)
        if self.objective is not Objective.CHAIN:
            roomier = [each for each in outcomes if each.tightness < best.tightness]
            yield from sorted(roomier, key=lambda each: each.penalty_s)[:1]
            yield from sorted(roomier, key=lambda each: (each.tightness, each.penalty_s))[:1]

    def _best(self, outcomes: Sequence[Outcome], least: Outcome) -> Outcome:
        if self.objective is Objective.CHAIN:
            return least
        if self.objective is Objective.PACK:
            return min(outcomes, key=self._packing)
        budget = least.penalty_s + self.slack + self._unit * _ALIKE
        affordable = [each for each in outcomes if each.penalty_s <= budget]
        return min(affordable, key=lambda each: (each.tightness, each.penalty_s))

    def _packing(self, outcome: Outcome) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        """A sort key: the room of coarse levels, then the price, then the room of close levels."""
        tightness = outcome.tightness
        return tightness[: self._num_packed], self._rounded(outcome.penalty_s), tightness

    @property
    def _num_packed(self) -> int:
        """Count the levels whose room `pack` keeps at any price: all but the closest domains, and the nodes."""
        return max(0, self.num_levels - 2)

    def _rounded(self, penalty_s: float) -> int:
        return round(penalty_s / self._unit / _ALIKE)

    @property
    def _unit(self) -> float:
        return self.prices.step_s or 1.0

    def layouts(self) -> Iterator[Replicas]:
        """Yield the layouts that are compared.

        Raises NoPlacementError if there is none.
        """
        is_traded = self.objective is Objective.PACK or (self.objective is Objective.AUTO and self.given is not None)
        whole = list(self._as_one_chain())
        for objective in (None, self.objective) if is_traded else (Objective.CHAIN,):
            goal = self._goal(objective)
            apart = [self._by_chain(goal)]
            rooms, num_replicas, depth = self._alike, len(self.chains), self.required_depth
            if rooms is not None and self._has_rings:
                root = self.topology.root
                apart += by_ring(root, rooms, self.prices, num_replicas=num_replicas, goal=goal, depth=depth)
            apart += whole
            if rooms is not None and num_replicas > 1:
                yield from self._jointly(rooms, goal, apart)
            yield from apart

    def _goal(self, objective: Objective | None) -> Goal:
        slack = self.slack + crossing_ties_s(self.prices)  # room counts for more than crossings that cost nothing
        return Goal(objective=objective, slack=slack, num_levels=self.num_levels, num_packed=self._num_packed)

    def _as_one_chain(self) -> Iterator[Replicas]:
        rooms, num_replicas = self._alike, len(self.chains)
        if rooms is not None and num_replicas > 1:
            yield from as_one_chain(
                self.topology.root,
                rooms,
                self.prices,
                num_replicas=num_replicas,
                goal=self._goal(None),
                depth=self.required_depth,
            )

    def _closest_of(self, layouts: Iterable[Replicas]) -> list[Replicas]:
        """Keep the layouts whose chains all stand as close as required, and of these those with most as preferred."""
        close = [each for each in layouts if _num_within(each, self.required_depth) == len(each)]
        most = max(_num_within(each, self._preferred_depth) for each in close)
        return [each for each in close if _num_within(each, self._preferred_depth) == most]

    @property
    def _has_rings(self) -> bool:
        return len(self.chains) > 1 and any(map(any, self.prices.ring))

    def _jointly(self, rooms: dict[Path, int], goal: Goal, apart: Sequence[Replicas]) -> Iterator[Replicas]:
        """Yield a layout by a search over all replicas at once, where they are few."""
        if JointReplicas.is_for(rooms, num_ranks=sum(map(len, self.chains))):
            starts = [[path for paths in replicas for path in paths] for replicas in apart]
            placer = JointReplicas(rooms, self.prices, num_replicas=len(self.chains), starts=starts)
            found = self._closest(placer, goal)
            if found is not None:
                num = len(self.chains[0])
                yield tuple(found.paths[start : start + num] for start in range(0, len(found.paths), num))

    # Chain by chain

    def _by_chain(self, goal: Goal) -> Replicas:
        room, like = Capacity(self.nodes), self._like
        if like is not None:
            like.give_all_back()
        placed: list[tuple[Path, ...]] = []
        for chain in self.chains:
            placer = like or MixedChain(self.topology, chain, room, self.prices, share=1 / len(self.chains))
            found = self._closest(placer, goal)
            if found is None:
                raise NoPlacementError(shortfall(self._attempt(chain, len(placed), room)))
            for demand, path in zip(chain, found.paths, strict=True):
                room.take(demand, path[-1])
            if like is not None:
                like.take(found.paths)
            placed.append(found.paths)
        return tuple(placed)

    def _closest(self, placer: Placer, goal: Goal) -> Found | None:
        """Return a chain within the preferred level, or else within the required one."""
        depths = sorted({self.required_depth, self._preferred_depth}, reverse=True)
        return next(filter(None, (goal.chain(placer, depth) for depth in depths)), None)

    @cached_property
    def _like(self) -> UniformChain | None:
        return None if self._alike is None else UniformChain(self.topology.root, self._alike, self.prices)

    @cached_property
    def _alike(self) -> dict[Path, int] | None:
        """Count the consecutive ranks that each node has room for; None if that depends on which ranks they are."""
        counts, *others = self._counts
        if others:
            pairs = [pair for chain in self.chains for pair in pairwise(chain)]
            if any(each.keys() != counts.keys() for each in others) or not Capacity(self.nodes).parts_all(pairs):
                return None
            counts = dict.fromkeys(counts, 1)
        return {self.topology.paths[node]: count for node, count in counts.items()}

    @cached_property
    def _counts(self) -> Sequence[dict[str, int]]:
        """Count, for each kind, the ranks that each node has room for."""
        room = Capacity(self.nodes)
        return [room.counts(kind) for kind in self.kinds]

    @cached_property
    def kinds(self) -> Sequence[Demand]:
        return kinds_of([demand for chain in self.chains for demand in chain])

    def _attempt(self, chain: Sequence[Demand], num_placed: int, room: Capacity) -> Attempt:
        return Attempt(
            demands=chain,
            num_replicas=len(self.chains),
            num_placed=num_placed,
            room=room,
            room_before=Capacity(self.nodes),
            nodes=self.nodes,
            topology=self.topology,
            domains=list(self.topology.root.at_depth(self.required_depth)),
            required_depth=self.required_depth,
        )

    # How close

    @cached_property
    def required_depth(self) -> int:
        required = self.scope.required
        depth = None if required is None else self.topology.depth_of(required, path=f"{_SCOPE}.required")
        if required is not None and depth is None:
            key = next(level.keys[0] for level in self.topology.absent if level.is_called(required))
            raise NoPlacementError(
                f"needs all stages in one {required}, but no node carries its label {key}; "
                f"label the nodes, or require another level ({', '.join(each.name for each in self.topology.levels)})"
            )
        return depth or 0

    @cached_property
    def _preferred_depth(self) -> int:
        preferred = self.scope.preferred
        depth = None if preferred is None else self.topology.depth_of(preferred, path=f"{_SCOPE}.preferred")
        return max(depth or 0, self.required_depth)

    # What came of it

    def outcome(self, replicas: Replicas) -> Outcome:
        left = self._room_left.after(self._taken(replicas))
        return Outcome(replicas=replicas, penalty_s=self.prices.penalty_s(replicas), left=left)

    def _taken(self, replicas: Replicas) -> dict[Path, int]:
        """Count the room for ranks of the scarcest kind that each node loses."""
        if len(self.kinds) == 1:
            return Counter(path for paths in replicas for path in paths)
        room = Capacity(self.nodes)
        paths = {path for paths in replicas for path in paths}
        before = {path: room.count(self._scarcest, path[-1]) for path in paths}
        for chain, nodes in zip(self.chains, replicas, strict=True):
            for demand, path in zip(chain, nodes, strict=True):
                room.take(demand, path[-1])
        after = {path: room.count(self._scarcest, path[-1]) for path in sorted(paths)}
        return {path: before[path] - left for path, left in after.items() if left < before[path]}

    @cached_property
    def _scarcest(self) -> Demand:
        """Return the kind of rank that finds the fewest places."""
        places = [sum(counts.values()) for counts in self._counts]
        return self.kinds[places.index(min(places))]

    @cached_property
    def _room_left(self) -> Headroom:
        counts, paths = self._counts[self.kinds.index(self._scarcest)], self.topology.paths
        rooms = {paths[node]: count for node, count in counts.items()}
        return Headroom(rooms, num_levels=self.num_levels, num_ranks=sum(map(len, self.chains)))

    def _trade(self, best: Outcome, least: Outcome) -> str | None:
        """Explain in one sentence what a longer step was traded for; None if it was not."""
        more_s = best.penalty_s - least.penalty_s
        pairs = zip(self.topology.levels, best.left, least.left, strict=True)
        gain = next((each for each in pairs if each[1].room > each[2].room), None)
        if gain is None or more_s <= self._unit * _ALIKE:
            return None
        level, left, otherwise = gain
        return (
            f"{100 * more_s / self._unit:.2g} % slower than the nearest chain, leaves room for {left.room} stages in "
            f"{level.name} {left.path[-1]} instead of {otherwise.room}"
        )


def chains_of(demands: Sequence[Demand]) -> list[list[Demand]]:
    ordered = sorted(demands, key=lambda demand: (demand.replica, demand.stage))
    return [list(chain) for _, chain in groupby(ordered, key=lambda demand: demand.replica)]


def _num_within(replicas: Replicas, depth: int) -> int:
    """Count the replicas that stand in one domain of a depth."""
    return sum(len({path[:depth] for path in paths}) == 1 for paths in replicas)


def crossings(paths: Sequence[Path]) -> tuple[int, ...]:
    """Count, level by level, the boundaries between neighbouring stages that cross it."""
    counts = [0] * len(paths[0])
    for one, other in pairwise(paths):
        for level in range(common_depth(one, other), len(counts)):
            counts[level] += 1
    return tuple(counts)
