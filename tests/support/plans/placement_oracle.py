"""The best placement there is, by a constraint solver: what small cases of `place` are held against.

It knows nothing of chains that walk a tree depth first, only what a placement is: every rank on
one node that has room for it, a price for each boundary and each ring by the closest domain that
holds both ends. The proof is part of the answer. Nodes that no one could tell apart, each with
room for one rank at most, are one place with room for several.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, lcm

from ortools.sat.python import cp_model

from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.prices import ByDepth, Prices

_LIMIT_S = 60.0
_STEPS = 10**7  # whole numbers into which the largest price is divided


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """What no placement beats: the least penalty, and what `objective: auto` is to find within the threshold."""

    least_s: float
    room: tuple[int, ...]  # largest next job by level, coarse to fine, compared in this order
    penalty_s: float  # the least that leaves this room


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A node, or like nodes of one domain that take one rank each."""

    node: NodeInfo
    path: tuple[str, ...]
    num_nodes: int

    def __hash__(self) -> int:
        return hash(self.path)


class Oracle:
    """One problem: which nodes for these ranks. Ranks come replica by replica, each stage by stage."""

    def __init__(
        self, demands: Sequence[Demand], topology: Topology, nodes: Sequence[NodeInfo], prices: Prices
    ) -> None:
        self._demands, self._topology, self._prices = demands, topology, prices
        self._kinds = _kinds(demands)
        self._places = list(_places(demands, topology, nodes))
        self._model = cp_model.CpModel()
        self._scale = _scale(prices)
        self._on = [self._choices(demand) for demand in demands]
        self._add_room()
        self._penalty = self._add_penalty()
        self._fits = self._add_next_job(_largest(demands))

    def best(self, *, threshold_s: float) -> Best | None:
        """Return what is best, or None if the ranks do not fit. `threshold_s` is what may be lost for room."""
        least = self._solve(minimise=self._penalty)
        if least is None:
            return None
        self._model.add(self._penalty <= least + round(threshold_s * self._scale))
        room = []
        for fits in self._fits:
            most = self._solve(maximise=fits)
            assert most is not None, "the least penalty is within any threshold"
            self._model.add(fits == most)
            room.append(most)
        penalty = self._solve(minimise=self._penalty)
        assert penalty is not None, "what leaves this room is still there"
        return Best(least_s=least / self._scale, room=tuple(room), penalty_s=penalty / self._scale)

    def _solve(self, *, minimise=None, maximise=None) -> int | None:
        if minimise is not None:
            self._model.minimize(minimise)
        else:
            self._model.maximize(maximise)
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = _LIMIT_S
        solver.parameters.num_workers = 2
        status = solver.solve(self._model)
        if status == cp_model.INFEASIBLE:
            return None
        assert status == cp_model.OPTIMAL, solver.status_name(status)
        return round(solver.objective_value)

    # ---- ranks on nodes

    def _choices(self, demand: Demand) -> dict[_Place, cp_model.IntVar]:
        allowed = [place for place in self._places if demand.nodes is None or place.node.name in demand.nodes]
        chosen = {
            place: self._model.new_bool_var(f"{demand.replica}/{demand.stage} on {place.path}") for place in allowed
        }
        self._model.add_exactly_one(chosen.values())
        return chosen

    def _add_room(self) -> None:
        for place in self._places:
            asked = self._asked(place)
            if place.num_nodes > 1:
                self._model.add(sum(chosen for _, chosen in asked) <= place.num_nodes)
            for resource in {resource for demand, _ in asked for resource in demand.requests}:
                if place.num_nodes > 1:
                    break
                wanted = [(Fraction(demand.requests.get(resource, 0)), chosen) for demand, chosen in asked]
                free = place.node.free.get(resource, Fraction(0))
                parts = lcm(free.denominator, *(amount.denominator for amount, _ in wanted))
                if free < sum(amount for amount, _ in wanted):
                    self._model.add(sum(int(amount * parts) * chosen for amount, chosen in wanted) <= int(free * parts))

    def _asked(self, place: _Place) -> list[tuple[Demand, cp_model.IntVar]]:
        return [
            (demand, chosen[place]) for demand, chosen in zip(self._demands, self._on, strict=True) if place in chosen
        ]

    def _inside(self, rank: int, depth: int) -> dict[tuple[str, ...], cp_model.LinearExprT]:
        """Give, for each domain at a depth, the expression that says that the rank stands in it."""
        inside: dict[tuple[str, ...], list[cp_model.IntVar]] = {}
        for place, chosen in self._on[rank].items():
            if depth < len(place.path) or place.num_nodes == 1:
                inside.setdefault(place.path[:depth], []).append(chosen)
        return {domain: sum(each) for domain, each in inside.items()}

    # ---- what it costs

    def _add_penalty(self) -> cp_model.IntVar:
        num, prices = self._prices.num_stages, self._prices
        replicas = [range(start, start + num) for start in range(0, len(self._demands), num)]
        chain, ring = (self._model.new_int_var(0, 2**40, name) for name in ("chain", "ring"))
        for ranks in replicas:
            together = [self._together_by_depth(ranks[stage : stage + 2]) for stage in range(num - 1)]
            self._add_cuts(ranks, together)
            costs = [self._price(*each) for each in zip(together, prices.chain, strict=True)]
            if num > 1 and max(prices.wrap) > 0:
                costs.append(self._price(self._together_by_depth([ranks[-1], ranks[0]]), prices.wrap))
            self._model.add(chain >= sum(costs))
        for stage in range(num if len(replicas) > 1 and max(map(max, prices.ring)) > 0 else 0):
            members = [ranks[stage] for ranks in replicas]
            self._model.add(ring >= self._price(self._together_by_depth(members), prices.ring[stage]))
        penalty = self._model.new_int_var(0, 2**41, "penalty")
        self._model.add(penalty == chain + ring)
        return penalty

    def _price(self, together: Sequence[cp_model.LinearExprT], by_depth: ByDepth) -> cp_model.LinearExprT:
        """Price ranks that talk, by the closest domain that holds them all; each level not shared adds its part."""
        whole = [round(price * self._scale) for price in by_depth]
        parts = ((whole[depth - 1] - whole[depth]) * (1 - together[depth - 1]) for depth in range(1, len(whole)))
        return whole[-1] + sum(parts)

    def _together_by_depth(self, ranks: Sequence[int]) -> list[cp_model.LinearExprT]:
        """Say for each depth from 1 on whether one domain holds all these ranks."""
        return [self._together(ranks, depth) for depth in range(1, len(self._topology.levels) + 1)]

    def _together(self, ranks: Sequence[int], depth: int) -> cp_model.LinearExprT:
        inside = [self._inside(rank, depth) for rank in ranks]
        both = []
        for domain in inside[0]:
            if all(domain in each for each in inside):
                held = self._model.new_bool_var(f"{ranks} in {domain}")
                both.append(held)
                for each in inside:
                    self._model.add(held <= each[domain])
        return sum(both)

    def _add_cuts(self, ranks: Sequence[int], together: Sequence[Sequence[cp_model.LinearExprT]]) -> None:
        """Tell the solver what follows anyhow, but what its relaxation cannot see.

        A chain that uses k domains of a level crosses at least k - 1 times there.
        """
        for depth in range(1, len(self._topology.levels)):
            inside: dict[tuple[str, ...], list[cp_model.LinearExprT]] = {}
            for rank in ranks:
                for domain, each in self._inside(rank, depth).items():
                    inside.setdefault(domain, []).append(each)
            used = {domain: self._model.new_bool_var(f"{ranks} use {domain}") for domain in inside}
            for domain, each in inside.items():
                room = sum(self._most_in(place) for place in self._places if place.path[:depth] == domain)
                self._model.add(sum(each) <= min(room, len(ranks)) * used[domain])
            crossed = sum(1 - each[depth - 1] for each in together)
            self._model.add(crossed >= sum(used.values()) - 1)

    def _most_in(self, place: _Place) -> int:
        return place.num_nodes * sum(_count(place.node, kind) for kind in self._kinds)

    # ---- what it leaves

    def _add_next_job(self, like: Demand) -> list[cp_model.IntVar]:
        """Give, for each level above the node, the most ranks like this one that one of its domains still takes."""
        counts = {place: self._left(place, like) for place in self._places}
        return [self._most(depth, counts) for depth in range(1, len(self._topology.levels))]

    def _left(self, place: _Place, like: Demand) -> cp_model.LinearExprT:
        if like.nodes is not None and place.node.name not in like.nodes:
            return 0
        if place.num_nodes > 1:
            return place.num_nodes - sum(chosen for _, chosen in self._asked(place))
        count = self._model.new_int_var(0, _count(place.node, like), f"left on {place.path}")
        for resource, amount in like.requests.items():
            free = place.node.free.get(resource, Fraction(0))
            used = [(Fraction(demand.requests.get(resource, 0)), chosen) for demand, chosen in self._asked(place)]
            parts = lcm(free.denominator, Fraction(amount).denominator, *(each.denominator for each, _ in used))
            if amount > 0 and free < 2**50:  # else there is room for all
                taken = sum(int(each * parts) * chosen for each, chosen in used)
                self._model.add(int(amount * parts) * count + taken <= int(free * parts))
        return count

    def _most(self, depth: int, counts: dict[_Place, cp_model.LinearExprT]) -> cp_model.IntVar:
        inside: dict[tuple[str, ...], list[cp_model.LinearExprT]] = {}
        for place, count in counts.items():
            inside.setdefault(place.path[:depth], []).append(count)
        most = self._model.new_int_var(0, 2**30, f"most at {depth}")
        largest = {domain: self._model.new_bool_var(f"{domain} is largest") for domain in inside}
        self._model.add_exactly_one(largest.values())
        for domain, each in inside.items():
            self._model.add(most <= sum(each)).only_enforce_if(largest[domain])
        return most


def _places(demands: Sequence[Demand], topology: Topology, nodes: Sequence[NodeInfo]) -> Iterator[_Place]:
    alike: dict[tuple[object, ...], list[NodeInfo]] = {}
    kinds = _kinds(demands)
    for node in nodes:
        if node.unusable is None and node.name in topology.paths and any(_count(node, kind) for kind in kinds):
            path = topology.paths[node.name]
            is_whole = all(_count(node, kind) <= 1 for kind in kinds) and not _holds_two(node, kinds)
            takes = tuple(_count(node, kind) for kind in kinds)
            alike.setdefault((path[:-1], takes, None if is_whole else node.name), []).append(node)
    for group in alike.values():
        yield _Place(node=group[0], path=topology.paths[group[0].name], num_nodes=len(group))


def _kinds(demands: Sequence[Demand]) -> list[Demand]:
    return [demand for index, demand in enumerate(demands) if not any(map(demand.is_like, demands[:index]))]


def _count(node: NodeInfo, demand: Demand) -> int:
    if demand.nodes is not None and node.name not in demand.nodes:
        return 0
    wanted = [(resource, amount) for resource, amount in demand.requests.items() if amount > 0]
    return max(0, min(floor(node.free.get(resource, 0) / amount) for resource, amount in wanted))


def _holds_two(node: NodeInfo, kinds: Sequence[Demand]) -> bool:
    return any(
        all(
            node.free.get(resource, 0) >= one.requests.get(resource, 0) + other.requests.get(resource, 0)
            for resource in {*one.requests, *other.requests}
        )
        for index, one in enumerate(kinds)
        for other in kinds[index + 1 :]
    )


def _scale(prices: Prices) -> float:
    """Return whole numbers a second; prices that are whole already stay so."""
    every = [price for by_depth in (*prices.chain, *prices.ring, prices.wrap) for price in by_depth]
    if all(float(price).is_integer() for price in every):
        return 1.0
    return _STEPS / max(every)


def _largest(demands: Sequence[Demand]) -> Demand:
    return max(demands, key=lambda demand: sorted((name, float(amount)) for name, amount in demand.requests.items()))
