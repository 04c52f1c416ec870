"""Cost tables of runs of stages in domains; domains with equal contents share one table.

A chain that is walked depth first visits each domain once, so inside a domain stands one run of
consecutive stages. With `price[d][b]` for boundary b crossing between two domains inside one of
depth d, a domain's table is

    cost[s, e] = min over its parts, in some order, each with one run, of
                 sum of cost of each part's run + sum of price[d][b] of the boundaries b between the runs

where `cost[s, e]` is of the stages s..e-1. Parts are added one by one, in order of their room:
from small to large if boundaries cost more towards the end of the chain, since that moves every
boundary as far to the front as it can go; the other way round if they cost less. For a domain over
nodes this order is the best one there is, and where all boundaries cost the same no order is
better than another. Elsewhere all orders are tried where the parts are few (`orders`), and one or
both of these where they are many.

Domains that hold the same have one table: of a hundred leaves with six free nodes each, one is
reckoned. And where all boundaries cost the same a run costs the same wherever it starts, so that a
table has one row. Chains of more than `_LONGEST` stages are reckoned so always, with mean prices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelinejob.placement.uniform_chain.orders import Steps, all_orders, num_steps, one_order, two_orders

Costs = npt.NDArray[np.float64]
Kind = int  # domains of one kind hold the same: their parts are of the same kinds

_INFINITE = float("inf")
_MOST_REORDERED, _EFFORT = 8, 10_000  # parts of a domain that are tried in all orders, and runs added in doing so
_LONGEST = 160  # stages whose boundaries are told apart; tables grow with the square, and the work with the cube


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a kind holds: nodes by their room, or parts by their kind, with the number of each."""

    depth: int
    is_over_nodes: bool
    parts: tuple[tuple[int, int], ...]
    most: int | None = None  # where no more than so many stages may be put there


class Tables:
    """The tables of all kinds, computed on demand."""

    def __init__(self, price: Costs, use: Sequence[float], *, num_stages: int) -> None:
        """Take the prices by depth and boundary, and by depth what using a domain costs for each stage it has room for.

        The latter is a tie-break, far smaller than any price.
        """
        self._price = price if num_stages <= _LONGEST else _levelled(price)
        self._use = use
        self._num_stages = num_stages
        self._orders = _orders(self._price)
        self._is_level = bool((self._price == self._price[:, :1]).all())
        self._kinds: dict[_Shape, Kind] = {}
        self._shapes: list[_Shape] = []
        self._rooms: list[int] = []
        self._runs: dict[Kind, Costs] = {}
        self._whole: dict[Kind, float] = {}
        self._bounds: dict[Kind, float] = {}
        sums = np.cumsum(np.sort(self._price, axis=1), axis=1)
        self._cheapest = np.hstack([np.zeros((len(price), 1)), sums])  # so many crossings
        self._parts: dict[Kind, Costs] = {}
        self._ends: dict[tuple[int, int], Costs] = {}
        stages = np.arange(num_stages + 1)
        self._starts = np.maximum(stages[:, None] - stages[1:], 0)  # where a run that ends at e starts
        self._nodes: dict[tuple[int, tuple[int, ...]], Costs] = {}
        self._crossings = [self._crossing(depth) for depth in range(len(price))]

    # What there is

    def over_nodes(self, depth: int, rooms: Sequence[int]) -> Kind:
        """Return the kind of a domain of this depth over nodes with these rooms."""
        return self._kind(_Shape(depth, is_over_nodes=True, parts=_counted(rooms)), sum(rooms))

    def over_parts(self, depth: int, kinds: Sequence[Kind]) -> Kind:
        """Return the kind of a domain of this depth over such parts."""
        return self._kind(_Shape(depth, is_over_nodes=False, parts=_counted(kinds)), sum(map(self.room, kinds)))

    def with_most(self, kind: Kind, most: int) -> Kind:
        """Return the kind that may take no more than so many stages."""
        shape = self._shapes[kind]
        limited = _Shape(shape.depth, shape.is_over_nodes, shape.parts, most=most)
        return self._kind(limited, min(most, self._rooms[kind]))

    def room(self, kind: Kind) -> int:
        """Count the stages that fit into a domain of this kind."""
        return self._rooms[kind]

    def _kind(self, shape: _Shape, room: int) -> Kind:
        kind = self._kinds.get(shape)
        if kind is None:
            kind = self._kinds[shape] = len(self._shapes)
            self._shapes.append(shape)
            self._rooms.append(room)
        return kind

    # What it costs

    def whole(self, kind: Kind) -> float:
        """Return the cost of the whole chain in one such domain; infinite if it does not fit."""
        if self.room(kind) < self._num_stages:
            return _INFINITE
        cost = self._whole.get(kind)
        if cost is None:
            costs = self._states(kind, start=0)[-1]
            cost = self._whole[kind] = _INFINITE if costs is None else float(costs[0, self._num_stages])
        return cost

    def bound(self, kind: Kind) -> float:
        """Return a lower bound of the whole chain's cost where no single part holds it; infinite if it does not fit."""
        if self.room(kind) < self._num_stages:
            return _INFINITE
        bound = self._bounds.get(kind)
        if bound is None:
            shape, room, parts = self._shapes[kind], 0, 0
            room_of = (lambda part: part) if shape.is_over_nodes else self.room
            for most, count in sorted(((room_of(part), count) for part, count in shape.parts), reverse=True):
                needed = min(count, -(-(self._num_stages - room) // most))
                room, parts = room + needed * most, parts + needed
                if room >= self._num_stages:
                    break
            bound = self._bounds[kind] = float(
                self._cheapest[shape.depth][min(max(1, parts - 1), self._num_stages - 1)]
            )
        return bound

    def runs(self, kind: Kind) -> Costs:
        """Return the costs of runs: `runs[n, s]` of n stages from stage s on."""
        runs = self._runs.get(kind)
        if runs is None:
            runs = self._runs[kind] = self._made(kind)
        return runs

    def _made(self, kind: Kind) -> Costs:
        shape = self._shapes[kind]
        if shape.is_over_nodes and shape.parts and shape.parts[-1][0] == 1:
            return self._of_single(shape.depth, min(self._num_stages, self.room(kind)))
        if shape.is_over_nodes and len(self._orders) == 1:
            costs: Costs | None = self._over(shape.depth, self._in_order(shape, ascending=self._orders[0]))
        else:
            costs = self._states(kind)[-1]
        assert costs is not None, "the last state is reached"
        return _skewed(costs, most=min(self._num_stages, self.room(kind)))

    def _of_single(self, depth: int, most: int) -> Costs:
        """Return the runs over nodes that take one stage each, so that every boundary crosses."""
        runs = np.full((most + 1, self._num_rows), _INFINITE)
        runs[0] = 0.0
        crossed = np.concatenate([[0.0], np.cumsum(self._price[depth])])
        for count in range(1, most + 1):
            starts = min(self._num_rows, self._num_stages - count + 1)
            runs[count, :starts] = crossed[count - 1 : count - 1 + starts] - crossed[:starts]
        runs[1:] += self._use[depth + 1] * np.arange(1, most + 1)[:, None]
        return runs

    def _over(self, depth: int, rooms: tuple[int, ...]) -> Costs:
        """Return the table of nodes with these rooms, in this order, extending the longest known prefix."""
        known = next((n for n in range(len(rooms), 0, -1) if (depth, rooms[:n]) in self._nodes), 0)
        costs = self._nodes[depth, rooms[:known]] if known else self._nothing()
        for number in range(known, len(rooms)):
            costs = self._with_part(depth, costs, self._node_runs(depth, rooms[number]))
            self._nodes[depth, rooms[: number + 1]] = costs
        return costs

    def _node_runs(self, depth: int, room: int) -> Costs:
        """Return the runs of a node with this room, in a domain of this depth."""
        runs = np.zeros((min(room, self._num_stages) + 1, self._num_rows))
        runs[1:] = self._use[depth + 1] * room
        return runs

    def _part_runs(self, kind: Kind) -> Costs:
        """Return the runs of a domain as part of another one, with the cost of using it."""
        runs = self._parts.get(kind)
        if runs is None:
            runs = self.runs(kind).copy()
            runs[1:] += self._use[self._shapes[kind].depth] * self._rooms[kind]
            self._parts[kind] = runs
        return runs

    def _in_order(self, shape: _Shape, *, ascending: bool) -> tuple[int, ...]:
        """Return the parts by room, without equal ones beyond the number that a chain can use.

        Of two alike that are each at most half full, one could take the other's stages, so not
        many stand half empty.
        """
        room_of = (lambda room: room) if shape.is_over_nodes else self.room
        ordered = sorted(shape.parts, key=lambda part: (room_of(part[0]), part[0]), reverse=not ascending)
        useful = ((part, min(count, 2 * -(-self._num_stages // room_of(part)) + 1)) for part, count in ordered)
        return tuple(part for part, count in useful for _ in range(count))

    def _steps(self, kind: Kind) -> Steps:
        """Return the orders that are worth trying: all where they matter and are few."""
        shape = self._shapes[kind]
        parts = self._in_order(shape, ascending=self._orders[0])
        if self._is_level or (shape.is_over_nodes and len(self._orders) == 1):
            return one_order(parts)
        rooms = parts if shape.is_over_nodes else tuple(map(self.room, parts))
        num_runs = sum(min(room, self._num_stages) for room in rooms) / max(1, len(parts))
        if len(parts) <= _MOST_REORDERED and num_steps(len(parts)) * num_runs <= _EFFORT:
            return all_orders(parts)
        return two_orders(parts, self._in_order(shape, ascending=self._orders[-1]))

    def _states(self, kind: Kind, start: int | None = None) -> list[Costs | None]:
        """Return the table after each set of parts: rows are the first stage, or only `start`; columns the end."""
        shape = self._shapes[kind]
        states: list[Costs | None] = [self._nothing(start)]
        for steps in self._steps(kind):
            reached = [
                self._extended(shape, costs, part, start)
                for before, part in steps
                if (costs := states[before]) is not None
            ]
            states.append(np.minimum.reduce(reached) if reached else None)
        return states

    def _runs_of(self, shape: _Shape, part: int) -> Costs:
        return self._node_runs(shape.depth, part) if shape.is_over_nodes else self._part_runs(part)

    @property
    def _num_rows(self) -> int:
        return 1 if self._is_level else self._num_stages + 1

    def _nothing(self, start: int | None = None) -> Costs:
        costs = np.full((self._num_rows, self._num_stages + 1), _INFINITE)
        np.fill_diagonal(costs, 0.0)
        return self._row(costs, start)

    def _extended(self, shape: _Shape, costs: Costs, part: int, start: int | None) -> Costs:
        """Add a part, which takes no stage, or a run that begins where the parts so far end."""
        if len(costs) == 1:
            return self._with_part_in_row(shape, costs, part, start)
        return self._with_part(shape.depth, costs, self._runs_of(shape, part))

    def _with_part(self, depth: int, costs: Costs, runs: Costs) -> Costs:
        entered = costs + self._crossings[depth]
        extended = costs.copy()
        for count in range(1, len(runs)):
            run = runs[count] if self._is_level else runs[count, :-count]
            np.minimum(extended[:, count:], entered[:, :-count] + run, out=extended[:, count:])
        return extended

    def _last_runs(self, shape: _Shape, part: int) -> Costs:
        """Return a part's runs by their end: `[e, n - 1]` of n stages before stage e."""
        key = shape.depth if shape.is_over_nodes else -1, part
        runs = self._ends.get(key)
        if runs is None:
            by_start = self._runs_of(shape, part)
            lengths = np.arange(1, len(by_start))
            starts = np.arange(self._num_stages + 1)[:, None] - lengths
            runs = by_start[lengths, np.maximum(starts, 0) if not self._is_level else 0]
            runs = np.where(starts < 0, _INFINITE, runs)
            self._ends[key] = runs
        return runs

    def _with_part_in_row(self, shape: _Shape, costs: Costs, part: int, start: int | None) -> Costs:
        """Add a part to a single row, with runs of all lengths at once, which is quicker."""
        runs = self._last_runs(shape, part)
        entered = (costs + self._row(self._crossings[shape.depth], start))[0]
        extended: Costs = np.minimum(costs, (entered[self._starts[:, : runs.shape[1]]] + runs).min(axis=1))
        return extended

    def _crossing(self, depth: int) -> Costs:
        """Return the cost of continuing in another part with stage m, which is 0 if m is the first."""
        before = np.zeros((self._num_rows, self._num_stages + 1))
        before[:, 1:-1] = self._price[depth]
        return np.triu(before, 1)

    def _row(self, costs: Costs, start: int | None) -> Costs:
        return costs if start is None or self._is_level else costs[start : start + 1]

    # Which way it was

    def shares(self, kind: Kind, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of the cheapest way to put the stages there, in order: each with its run's start and end.

        A part is the room of a node or the kind of a part; those alike count as one and the same.
        """
        shape, steps, states = self._shapes[kind], self._steps(kind), self._states(kind, start)
        offset = start if self._is_level else 0
        end -= offset
        taken, state = [], len(steps)
        while state:
            here = states[state]
            assert here is not None, "a state that was reached is left by the way it came"
            cost = here[0, end]
            for before, part in steps[state - 1]:
                count = self._last_run(shape, states[before], part, (start, end, cost))
                if count is not None:
                    break
            if count:
                taken.append((part, end - count + offset, end + offset))
                end -= count
            state = before
        yield from reversed(taken)

    def _last_run(self, shape: _Shape, before: Costs | None, part: int, at: tuple[int, int, float]) -> int | None:
        """Return the length of the run, or 0, that led from the table before to this cost; None if none did."""
        start, end, cost = at
        if before is None or before[0, end] == cost:
            return None if before is None else 0
        entered, runs = before + self._row(self._crossings[shape.depth], start), self._runs_of(shape, part)
        lengths = range(1, min(len(runs) - 1, end) + 1)
        column = 0 if self._is_level else 1
        return next((n for n in lengths if entered[0, end - n] + runs[n, column * (end - n)] == cost), None)


def _orders(price: Costs) -> tuple[bool, ...]:
    """Return the orders of room in which parts are worth adding: ascending, descending or both."""
    steps = np.diff(price, axis=1)
    if (steps >= 0).all():
        return (True,)
    return (False,) if (steps <= 0).all() else (True, False)


def _counted(values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return tuple(sorted(counts.items()))


def _levelled(price: Costs) -> Costs:
    return np.broadcast_to(price.mean(axis=1, keepdims=True), price.shape)


def _skewed(costs: Costs, *, most: int) -> Costs:
    """Turn costs by start and end into costs by length and start."""
    runs = np.full((most + 1, len(costs)), _INFINITE)
    for count in range(most + 1):
        diagonal = np.diagonal(costs, count)[: len(costs)]
        runs[count, : len(diagonal)] = diagonal
    return runs
