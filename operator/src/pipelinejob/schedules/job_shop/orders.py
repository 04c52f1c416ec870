"""Orders of a job shop, read from a schedule and written as one.

A full backward is read as its two halves, one after the other: that keeps the rank no longer, and
its gradient leaves earlier. Where that gains nothing, they are written as one again.
"""

from collections.abc import Sequence
from itertools import pairwise

from pipelinejob.schedules.actions import Action, ActionKind, Place, Route, Schedule
from pipelinejob.schedules.job_shop.job_shop import JobShop, Orders

_EFFORT = 300_000  # jobs played to find what can be whole


def orders_of(shop: JobShop, schedule: Schedule) -> Orders:
    """Read a schedule's merging of the shop's lines, which must be of the same routes."""
    numbers = {(line.kind, line.route, line.place): number for number, line in enumerate(shop.lines)}
    done = [0] * len(shop.lines)
    orders: Orders = []
    for rank, actions in enumerate(schedule.ranks):
        orders.append([])
        for action in actions:
            is_full = action.kind is ActionKind.BACKWARD
            for kind in (ActionKind.INPUT, ActionKind.WEIGHT) if is_full else (action.kind,):
                number = numbers[kind, schedule.route_of[action.micro_batch], Place(rank, action.chunk)]
                orders[rank].append(shop.lines[number].first + done[number])
                done[number] += 1
    return orders


def schedule_of(
    shop: JobShop,
    orders: Orders,
    routes: tuple[Route, ...],
    route_of: Sequence[int],
    whole: frozenset[int] = frozenset(),
) -> Schedule:
    """Write orders down as a schedule.

    The input gradients in `whole` become full backwards with the weight gradients after them.
    """
    micro_batches = [[k for k, taken in enumerate(route_of) if taken == route] for route in range(len(routes))]
    ranks = []
    for order in orders:
        actions = []
        for job in order:
            line = shop.lines[shop.line_of[job]]
            position = job - line.first
            if line.kind is ActionKind.WEIGHT and shop.lines[line.after or 0].first + position in whole:
                continue
            kind = ActionKind.BACKWARD if job in whole else line.kind
            actions.append(Action(kind, micro_batches[line.route][position], line.place.chunk))
        ranks.append(tuple(actions))
    return Schedule(routes=routes, route_of=tuple(route_of), ranks=tuple(ranks))


def fused(shop: JobShop, orders: Orders) -> frozenset[int]:
    """Choose input gradients that can be one full backward with the weight gradients just after them.

    The message of a full backward leaves at its end. We take all pairs at once, and halve what
    makes the step longer.
    """
    started = shop.play(orders)
    assert started is not None, "orders that are written down can be played"
    limit = shop.makespan(started) * (1 + 1e-12)
    seconds = list(shop.seconds)
    chosen: set[int] = set()
    parts = [_pairs(shop, order) for order in reversed(orders)]
    for _ in range(_EFFORT // shop.num_jobs):
        if not parts:
            break
        part = parts.pop()
        trial = list(seconds)
        for job, weight in part:
            trial[job], trial[weight] = seconds[job] + seconds[weight], 0.0
        started = shop.play(orders, trial)
        assert started is not None, "times change no order"
        if max(map(float.__add__, started, trial)) <= limit:
            seconds = trial
            chosen |= {job for job, _ in part}
        elif len(part) > 1:
            middle = len(part) // 2
            parts += [part[:middle], part[middle:]]
    return frozenset(chosen)


def _pairs(shop: JobShop, order: Sequence[int]) -> list[tuple[int, int]]:
    """Return the input gradients that their own weight gradients follow at once, with these."""
    pairs = []
    for job, following in pairwise(order):
        line, weight = shop.lines[shop.line_of[job]], shop.lines[shop.line_of[following]]
        is_own = weight.after == shop.line_of[job] and following - weight.first == job - line.first
        if is_own and weight.kind is ActionKind.WEIGHT:
            pairs.append((job, following))
    return pairs
