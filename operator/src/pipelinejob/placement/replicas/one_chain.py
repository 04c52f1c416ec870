"""Lays out a whole uniform job as one long chain, and improves layouts by swapping ranks.

All ranks together in as few and as tight domains as there are leave the most room, whatever they
cost; then seats are handed out chain after chain, or ring after ring, over the closest domains in
the order in which that costs least. Changing seats leaves the room as it is: swaps that shorten
the step are made as long as there are any, those of the dearest chain and the dearest ring, which
alone count.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, groupby, islice

from pipelinejob.fabric.topology import Domain
from pipelinejob.placement.goal import Goal
from pipelinejob.placement.prices import Path, Prices, crossing_prices
from pipelinejob.placement.replicas.layout_costs import LayoutCosts, Tally
from pipelinejob.placement.uniform_chain.placer import UniformChain
from pipelinejob.spec.network.objective import Objective

Replicas = tuple[tuple[Path, ...], ...]

_Handing = Callable[[Sequence[Path]], Replicas]  # who gets which of the seats

_EFFORT = 3_000  # swaps that are priced to improve one layout
_REORDERED = 1_500  # ranks that are priced to find the order of the domains
_MOST_PRICED = 48  # ranks whose chains are placed end to end by price: the work grows with the cube of them


def as_one_chain(
    root: Domain, rooms: Mapping[Path, int], prices: Prices, *, num_replicas: int, goal: Goal, depth: int
) -> Iterator[Replicas]:
    """Yield layouts of all ranks within one domain of a depth, in the tightest domains, with few or cheap crossings."""
    num_stages, num_ranks = prices.num_stages, prices.num_stages * num_replicas

    def by_chain(seats: Sequence[Path]) -> Replicas:
        return tuple(tuple(seats[start : start + num_stages]) for start in range(0, num_ranks, num_stages))

    def by_ring(seats: Sequence[Path]) -> Replicas:
        return tuple(tuple(seats[replica::num_replicas]) for replica in range(num_replicas))

    crossed = UniformChain(root, rooms, crossing_prices(num_ranks, goal.num_levels))
    for seats in _seats(crossed, goal, depth):
        yield from (_in_order(seats, prices, handed) for handed in (by_chain, by_ring))
    if num_ranks <= _MOST_PRICED:
        priced = UniformChain(root, rooms, _end_to_end(prices, num_replicas))
        yield from map(by_chain, _seats(priced, goal, depth))


def _seats(placer: UniformChain, goal: Goal, depth: int) -> Iterator[tuple[Path, ...]]:
    for objective in (Objective.PACK, None):
        found = replace(goal, objective=objective).chain(placer, depth)
        if found is not None:
            yield found.paths


def _end_to_end(prices: Prices, num_replicas: int) -> Prices:
    """Concatenate the prices of all replicas' chains; the boundary between two of them costs nothing."""
    free = (0.0,) * prices.num_depths
    return Prices(
        step_s=prices.step_s,
        chain=((*prices.chain, free) * num_replicas)[:-1],
        ring=(free,) * (prices.num_stages * num_replicas),
        wrap=free,
    )


def _in_order(seats: Sequence[Path], prices: Prices, handed: _Handing) -> Replicas:
    """Assign seats over the closest domains in the best order found by swapping two domains at a time."""
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
    """Improve a layout by the best swaps of two ranks, one after another; the room that it leaves stays the same."""
    seats = [path for paths in replicas for path in paths]
    places = sorted(set(seats))
    number = {place: index for index, place in enumerate(places)}
    costs = LayoutCosts.of(prices, len(replicas), places)
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


def _swaps(costs: LayoutCosts, tally: Tally, layout: Sequence[int]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Yield the layouts in which one rank of the most expensive chain or ring has swapped its seat with any other."""
    num = costs.num_stages
    replica, stage = tally.dearest
    for rank in sorted({*range(replica * num, (replica + 1) * num), *range(stage, len(layout), num)}):
        for other, place in enumerate(layout):
            if place != layout[rank]:
                swapped = list(layout)
                swapped[rank], swapped[other] = place, layout[rank]
                yield (rank, other), swapped
