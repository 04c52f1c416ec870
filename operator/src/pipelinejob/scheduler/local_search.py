"""Local search: moves one job of a busy stretch on the critical path at a time, as for job shops.

A step is as long as its critical path: jobs of which each starts as soon as the one before it has
ended or its message arrived. On a rank it runs through stretches of jobs without a pause. The step
can only become shorter where a stretch begins or ends with another job (Grabowski, Nowicki and
Smutnicki 1986), or where neighbours within change places.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipelinejob.schedules.job_shop.job_shop import JobShop, Orders

_CLOSE = 1e-9
_MAX_STALLED = 30  # moves that made nothing shorter, before giving up


class _Move(NamedTuple):
    rank: int
    source: int  # positions in the rank's order
    target: int


class _Played(NamedTuple):
    makespan_s: float
    spread: float  # of the ranks' ends, squared: of equally long steps, one with less can be shortened sooner
    orders: Orders
    started: list[float]


def local_search(shop: JobShop, orders: Orders, tries: int, *, enough_s: float = 0.0) -> Orders:
    """Return the best of at most `tries` orders, from `orders` on, within capacity and free of deadlock.

    Goes to the first neighbour that is shorter, else to the best one, never to the same twice; a
    step of `enough_s` is short enough.
    """
    here = _played(shop, orders)
    assert here is not None, "the search begins with orders that can be played"
    best, seen, stalled = here, {_key(orders)}, 0
    enough_s *= 1 + _CLOSE
    while tries > 0 and stalled < _MAX_STALLED and best.makespan_s > enough_s:
        there: _Played | None = None
        for move in _moves(shop, here):
            moved = _moved(shop, here.orders, move)
            if moved is None or _key(moved) in seen:
                continue
            seen.add(_key(moved))
            tries -= 1
            played = _played(shop, moved)
            if played is not None and (there is None or played[:2] < there[:2]) and shop.flows(moved):
                there = played
            if tries <= 0 or (there is not None and there.makespan_s < here.makespan_s * (1 - _CLOSE)):
                break
        if there is None:
            break
        here = there
        stalled += 1
        if here.makespan_s < best.makespan_s * (1 - _CLOSE):
            best, stalled = here, 0
    return best.orders


def _key(orders: Orders) -> int:
    return hash(tuple(map(tuple, orders)))


def _played(shop: JobShop, orders: Orders) -> _Played | None:
    started = shop.play(orders)
    if started is None:
        return None
    ends = [started[order[-1]] + shop.seconds[order[-1]] for order in orders]
    return _Played(max(ends), sum(end * end for end in ends), orders, started)


def _moves(shop: JobShop, here: _Played) -> Iterator[_Move]:
    """Yield, for every stretch, each swap of neighbours, and each job moved behind its end or before its beginning."""
    for rank, first, last in _stretches(shop, here):
        for position in range(first, last):
            yield _Move(rank, position, position + 1)
            if position + 1 < last:
                yield _Move(rank, position, last)
            if position > first:
                yield _Move(rank, position + 1, first)


def _stretches(shop: JobShop, here: _Played) -> list[tuple[int, int, int]]:
    """Return the critical path's stretches, from the beginning of the step on: rank, first and last position."""
    started, close_s = here.started, _CLOSE * here.makespan_s
    position = {job: at for order in here.orders for at, job in enumerate(order)}
    job = max((order[-1] for order in here.orders), key=lambda last: started[last] + shop.seconds[last])
    stretches = []
    while job >= 0:
        rank = shop.rank_of[job]
        order = here.orders[rank]
        first = last = position[job]
        while (
            first > 0 and started[order[first - 1]] + shop.seconds[order[first - 1]] >= started[order[first]] - close_s
        ):
            first -= 1
        if first < last:
            stretches.append((rank, first, last))
        job = shop.source[order[first]]
    return stretches[::-1]


def _moved(shop: JobShop, orders: Orders, move: _Move) -> Orders | None:
    """Return the orders after a move.

    None where it changes nothing, puts a job before what it comes after, or exceeds the capacity.

    Jobs of one line keep their order among each other: it is the line's place in the order that
    moves.
    """
    order = orders[move.rank]
    first, last = min(move.source, move.target), max(move.source, move.target)
    lines = [shop.line_of[job] for job in order[first : last + 1]]
    turned = [*lines[1:], lines[0]] if move.source < move.target else [lines[-1], *lines[:-1]]
    if turned == lines:
        return None
    following: dict[int, int] = {}
    for job, line in zip(order[first : last + 1], lines, strict=True):
        following.setdefault(line, job)
    moved = []
    for line in turned:
        moved.append(following[line])
        following[line] += 1
    made = [*order[:first], *moved, *order[last + 1 :]]
    return [*orders[: move.rank], made, *orders[move.rank + 1 :]] if _is_allowed(shop, made, move.rank) else None


def _is_allowed(shop: JobShop, order: Sequence[int], rank: int) -> bool:
    done = dict.fromkeys(shop.of_rank[rank], 0)
    free = shop.capacity[rank] + _CLOSE
    for job in order:
        number = shop.line_of[job]
        line = shop.lines[number]
        if line.after is not None and done[line.after] <= done[number]:
            return False
        done[number] += 1
        free -= line.holds
        if free < 0:
            return False
    return True
