"""Lays a whole job of like stages out as one long chain, and lets ranks change their seats.

All ranks together in as few and as tight domains as there are leave the most room, whatever they cost; then seats are
handed out chain after chain, or ring after ring. Changing seats leaves the room as it is: swaps that shorten the step
are made as long as there are any, those of the dearest chain and the dearest ring, which alone count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pipelinejob.objective import Objective
from pipelinejob.placement_costs import JobCosts, Tally
from pipelinejob.placement_goal import Goal
from pipelinejob.placement_like import LikeStages
from pipelinejob.prices import Path, Prices, crossing_prices
from pipelinejob.topology import Domain

Replicas = tuple[tuple[Path, ...], ...]

_EFFORT = 3_000  # swaps that are priced to improve one layout


def as_one_chain(
    root: Domain, rooms: Mapping[Path, int], *, num_stages: int, num_replicas: int, goal: Goal, depth: int
) -> Iterator[Replicas]:
    """Give layouts of all ranks in one domain of a depth, in the tightest domains and with the fewest crossings."""
    num_ranks = num_stages * num_replicas
    placer = LikeStages(root, rooms, crossing_prices(num_ranks, goal.num_levels))
    for objective in (Objective.PACK, None):
        found = replace(goal, objective=objective).chain(placer, depth)
        if found is not None:
            seats = found.paths
            yield tuple(seats[start : start + num_stages] for start in range(0, num_ranks, num_stages))
            yield tuple(seats[replica::num_replicas] for replica in range(num_replicas))


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
