"""`auto`: at least as good as every named schedule that fits, and better where local search finds how.

Candidates are the named synchronous schedules within the caps, and lists made for the costs; the best of them are then
improved by moving one action at a time on a rank. All of it is deterministic and bounded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelinejob.schedules.actions import ActionKind, RankActions, Route, Schedule, ScheduleError, folded, straight
from pipelinejob.schedules.costs import Costs
from pipelinejob.schedules.list_scheduler import TASTES, schedule_for
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.validate import is_valid
from pipelinejob.simulate import simulate

_EFFORT = 120_000  # actions simulated in the search of one start
_STARTS = 4
_SLACK = 1 + 1e-9

Named = Callable[[Setting], Iterator[Schedule]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A schedule, its makespan, and a bound below which no schedule can be."""

    schedule: Schedule
    makespan_s: float
    bound_s: float

    @property
    def distance(self) -> float:
        """Give by which share of the bound the makespan is above it."""
        return self.makespan_s / self.bound_s - 1


def search(setting: Setting, named: Named) -> Found:
    """Find the best schedule for a setting's costs and caps; `named` gives those that can be made by name.

    Raises ScheduleError when none fits the caps, with the smallest cap that would do.
    """
    candidates = [*named(setting), *_made(setting)]
    fitting = [schedule for schedule in candidates if is_valid(schedule, activation_caps=setting.activation_caps)]
    if not fitting:
        least = min(max(peak_activations(schedule)) for schedule in candidates)
        raise ScheduleError(f"no schedule keeps within the memory cap; the smallest that would do is {least:g}")
    ranked = sorted(fitting, key=lambda schedule: _makespan_s(schedule, setting))
    improved = [_improved(schedule, setting) for schedule in ranked[:_STARTS]]
    best = min((*improved, ranked[0]), key=lambda schedule: _makespan_s(schedule, setting))
    return Found(schedule=best, makespan_s=_makespan_s(best, setting), bound_s=lower_bound_s(setting))


def lower_bound_s(setting: Setting) -> float:
    """Give what no schedule can be below: of each kind of route that is searched, the least that it needs.

    That is the longest of the way of one micro-batch there and back, and each rank's work behind the way to it.
    """
    kinds: list[tuple[Route, ...]] = [(route,) for route in _routes(setting)]
    if setting.num_ranks % 2 == 0 and setting.num_chunks in {None, 1}:
        there = straight(setting.num_ranks)
        kinds.append((there, there[::-1]))
    return min(_bound_of(routes, setting) for routes in kinds)


def _bound_of(routes: tuple[Route, ...], setting: Setting) -> float:
    costs = setting.costs_of(*routes)
    speeds = costs.speeds or (1.0,) * setting.num_ranks
    fastest = max(speeds)
    hop = min((costs.between(*ends).seconds for route in routes for ends in pairwise(route)), default=0.0)
    turns = sum(one == other for one, other in pairwise(routes[0]))
    hops = (len(routes[0]) - 1 - turns) * hop
    there_and_back = (sum(costs.forward_s) + sum(costs.input_s) + costs.weight_s[0]) / fastest + 2 * hops
    return max(there_and_back, *(_work_bound(routes, costs, rank, setting) for rank in range(setting.num_ranks)))


def _work_bound(routes: tuple[Route, ...], costs: Costs, rank: int, setting: Setting) -> float:
    """Give a rank's work, and before it the way to the first stage that it holds, on whichever route is shorter."""
    speeds = costs.speeds or (1.0,) * setting.num_ranks
    reached, shares = [], []
    for route in routes:
        first = route.index(rank)
        hops = sum(costs.between(*ends).seconds for ends in pairwise(route[: first + 1]))
        reached.append(hops + sum(costs.forward_s[stage] / speeds[route[stage]] for stage in range(first)))
        held = [stage for stage, on in enumerate(route) if on == rank]
        shares.append(sum(costs.forward_s[s] + costs.input_s[s] + costs.weight_s[s] for s in held) / speeds[rank])
    return min(reached) + setting.num_micro_batches * min(shares)


def _routes(setting: Setting) -> tuple[Route, ...]:
    both = {1: straight(setting.num_ranks), 2: folded(setting.num_ranks)}
    if setting.num_chunks is None:
        return tuple(both.values())
    return (both.get(setting.num_chunks, both[1]),)


def _made(setting: Setting) -> Iterator[Schedule]:
    for route in _routes(setting):
        chunks = route.count(0)
        try:
            costs = setting.costs_of(route)
        except ScheduleError:  # too few layers for so many stages
            continue
        most = float(2 * setting.num_ranks)
        caps = [max(chunks, int(cap * chunks + 1e-9)) for cap in setting.activation_caps or (most,) * setting.num_ranks]
        for taste in TASTES:
            schedule = schedule_for(route, setting.num_micro_batches, costs, caps, taste)
            if schedule is not None:
                yield schedule


def _makespan_s(schedule: Schedule, setting: Setting) -> float:
    return simulate(schedule, setting.costs_of(*schedule.routes)).makespan_s


def _improved(schedule: Schedule, setting: Setting) -> Schedule:
    """Climb: take the first move that makes the step shorter, until none does or the effort is spent."""
    costs = setting.costs_of(*schedule.routes)
    tries = _EFFORT // max(1, sum(map(len, schedule.ranks)))
    best_s = _played_s(schedule, costs)
    while tries > 0:
        for moved in _moves(schedule, costs):
            tries -= 1
            made_s = _played_s(moved, costs)
            if made_s * _SLACK < best_s and is_valid(moved, activation_caps=setting.activation_caps):
                schedule, best_s = moved, made_s
                break
            if tries <= 0:
                break
        else:
            break
    return schedule


def _played_s(schedule: Schedule, costs: Costs) -> float:
    try:
        return simulate(schedule, costs).makespan_s
    except ScheduleError:  # a move has made ranks wait for each other
        return float("inf")


def _moves(schedule: Schedule, costs: Costs) -> Iterator[Schedule]:
    """Give neighbours: where a rank waits, something later is done instead; elsewhere two actions change places."""
    played = simulate(schedule, costs)
    last_first = sorted(range(schedule.num_ranks), key=lambda rank: -played.ended_s[rank][-1])
    for rank in last_first:
        started, ended = played.started_s[rank], played.ended_s[rank]
        for actions in _moved(schedule.ranks[rank], started, ended):
            ranks = (*schedule.ranks[:rank], actions, *schedule.ranks[rank + 1 :])
            yield Schedule(routes=schedule.routes, route_of=schedule.route_of, ranks=ranks)


def _moved(actions: RankActions, started: Sequence[float], ended: Sequence[float]) -> Iterator[RankActions]:
    waits = [k for k in range(1, len(actions)) if started[k] > ended[k - 1] * _SLACK]
    pairs = [(later, wait) for wait in waits for later in range(wait + 1, min(len(actions), wait + 1 + _REACH))]
    pairs += [(k + 1, k) for k in range(len(actions) - 1)]
    for source, target in pairs:
        moved = _put_before(actions, source, target)
        if moved is not None:
            yield moved
    for k, action in enumerate(actions):
        if action.kind is ActionKind.WEIGHT:
            yield from (moved for far in (2, 4, 8) if (moved := _put_off(actions, k, k + far)) is not None)
        elif action.kind is ActionKind.BACKWARD:
            yield _halved(actions, k)


_REACH = 8


def _put_before(actions: RankActions, source: int, target: int) -> RankActions | None:
    moved, between = actions[source], actions[target:source]
    if any(other.micro_batch == moved.micro_batch and other.chunk == moved.chunk for other in between):
        return None
    return (*actions[:target], moved, *between, *actions[source + 1 :])


def _put_off(actions: RankActions, source: int, target: int) -> RankActions | None:
    if target >= len(actions):
        return None
    return (*actions[:source], *actions[source + 1 : target + 1], actions[source], *actions[target + 1 :])


def _halved(actions: RankActions, position: int) -> RankActions:
    whole = actions[position]
    halves = whole._replace(kind=ActionKind.INPUT), whole._replace(kind=ActionKind.WEIGHT)
    return (*actions[:position], *halves, *actions[position + 1 :])
