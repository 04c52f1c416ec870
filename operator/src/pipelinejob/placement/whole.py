"""Lays a whole job of like stages out as one long chain, and lets ranks change their seats.

All ranks together in as few and as tight domains as there are leave the most room, whatever they cost; then seats are
handed out chain after chain, or ring after ring, over the closest domains in the order in which that costs least.
Changing seats leaves the room as it is: swaps that shorten the step are made as long as there are any, those of the
dearest chain and the dearest ring, which alone count.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, groupby, islice

from pipelinejob.objective import Objective
from pipelinejob.placement.costs import JobCosts, Tally
from pipelinejob.placement.goal import Goal
from pipelinejob.placement.like import LikeStages
from pipelinejob.prices import Path, Prices, crossing_prices
from pipelinejob.topology import Domain

Replicas = tuple[tuple[Path, ...], ...]

_Handing = Callable[[Sequence[Path]], Replicas]  # who gets which of the seats

_EFFORT = 3_000  # swaps that are priced to improve one layout
_REORDERED = 1_500  # ranks that are priced to find the order of the domains
_MOST_PRICED = 48  # ranks whose chains are placed end to end by price: the work grows with the cube of them


def as_one_chain(
    root: Domain, rooms: Mapping[Path, int], prices: Prices, *, num_replicas: int, goal: Goal, depth: int
) -> Iterator[Replicas]:
    """Give layouts of all ranks in one domain of a depth, in the tightest domains, with few or with cheap crossings."""
    num_stages, num_ranks = prices.num_stages, prices.num_stages * num_replicas

    def by_chain(seats: Sequence[Path]) -> Replicas:
        return tuple(tuple(seats[start : start + num_stages]) for start in range(0, num_ranks, num_stages))

    def by_ring(seats: Sequence[Path]) -> Replicas:
        return tuple(tuple(seats[replica::num_replicas]) for replica in range(num_replicas))

    crossed = LikeStages(root, rooms, crossing_prices(num_ranks, goal.num_levels))
    for seats in _seats(crossed, goal, depth):
        yield from (_in_order(seats, prices, handed) for handed in (by_chain, by_ring))
    if num_ranks <= _MOST_PRICED:
        priced = LikeStages(root, rooms, _end_to_end(prices, num_replicas))
        yield from map(by_chain, _seats(priced, goal, depth))


def _seats(placer: LikeStages, goal: Goal, depth: int) -> Iterator[tuple[Path, ...]]:
    for objective in (Objective.PACK, None):
        found = replace(goal, objective=objective).chain(placer, depth)
        if found is not None:
            yield found.paths


def _end_to_end(prices: Prices, num_replicas: int) -> Prices:
    """Give the prices of all chains, one after another, as if they were one: between two of them it costs nothing."""
    free = (0.0,) * prices.num_depths
    return Prices(
        step_s=prices.step_s,
        chain=((*prices.chain, free) * num_replicas)[:-1],
        ring=(free,) * (prices.num_stages * num_replicas),
        wrap=free,
    )


def _in_order(seats: Sequence[Path], prices: Prices, handed: _Handing) -> Replicas:
    """Hand the seats out over the closest domains in the best order found: two at a time change their turns."""
    blocks = [tuple(inside) for _, inside in groupby(seats, key=lambda seat: seat[:-1])]
    orders = (blocks, sorted(blocks, key=len, reverse=True))
    least, _, order = min((prices.penalty_s(handed(_joined(each))), number, each) for number, each in enumerate(orders))
    effort = _REORDERED // len(seats)
    while effort > 0 and len(order) > 1:
        turns = [_swapped(order, *pair) for pair in islice(combinations(range(len(order)), 2), effort)]
        effort -= len(turns)
        best = min((prices.penalty_s(handed(_joined(each))), number) for number, each in enumerate(turns))
        if best[0] >= least:
            break
        least, order = best[0], turns[best[1]]
    return handed(_joined(order))


def _joined(blocks: Sequence[Sequence[Path]]) -> list[Path]:
    return list(chain.from_iterable(blocks))


def _swapped(blocks: Sequence[tuple[Path, ...]], one: int, other: int) -> list[tuple[Path, ...]]:
    swapped = list(blocks)
    swapped[one], swapped[other] = blocks[other], blocks[one]
    return swapped


def with_seats_changed(replicas: Replicas, prices: Prices) -> Replicas:
    """Give the layout after the best swaps, one after another; its room is as before."""
    seats = [path for paths in replicas for path in paths]
    places = sorted(set(seats))
    number = {place: index for index, place in enumerate(places)}
    costs = JobCosts.of(prices, len(replicas), places)
    layout, effort = [number[seat] for seat in seats], _EFFORT
    score = costs.score(layout)
    while effort > 0:
        tally = Tally(costs, layout)
        swaps = list(_swaps(costs, tally, layout))
        effort -= len(swaps)
        best = min(((tally.after(each, *ranks), each) for ranks, each in swaps), default=(score, layout))
        if best[0] >= score:
            break
        score, layout = best
    num = prices.num_stages
    return tuple(tuple(places[seat] for seat in layout[start : start + num]) for start in range(0, len(layout), num))


def _swaps(costs: JobCosts, tally: Tally, layout: Sequence[int]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Give the layouts in which one rank of the dearest chain or ring has changed its seat with any other."""
    num = costs.num_stages
    replica, stage = tally.dearest
    for rank in sorted({*range(replica * num, (replica + 1) * num), *range(stage, len(layout), num)}):
        for other, place in enumerate(layout):
            if place != layout[rank]:
                swapped = list(layout)
                swapped[rank], swapped[other] = place, layout[rank]
                yield (rank, other), swapped
