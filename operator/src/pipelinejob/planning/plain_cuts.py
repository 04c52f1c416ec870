"""Partitions that need no search: those that a manifest gives, and simple ones to compare others with."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from pipelinejob.base.errors import SpecError
from pipelinejob.costs.stages import Cuts, Division
from pipelinejob.planning.partition import partition
from pipelinejob.schedules.actions import Route


def simple_cuts(division: Division) -> tuple[Cuts, Cuts]:
    """Return two simple partitions: that with the least busy busiest stage, and that into equal numbers of layers.

    Where a rank holds several stages, its busiest one may count as much as their sum; a short step
    may count its beginning and its end for more than its pace.
    """
    seconds = [layer.compute_s for layer in division.profile.layers]
    num_stages, num_layers = len(division.cuts), len(seconds)
    even = [num_layers * stage // num_stages for stage in range(num_stages + 1)]
    return partition(seconds, num_stages), tuple(pairwise(even))


def given_cuts(counts: Sequence[int], route: Route, *, num_layers: int) -> Cuts:
    path, num_ranks = "spec.partition.layers", len(set(route))
    if len(counts) != len(route):
        each = f", each with {len(route) // num_ranks} stretches of layers" if len(route) > num_ranks else ""
        raise SpecError(
            path,
            f"has {len(counts)} entries but the schedule has {num_ranks} stages{each}; give {len(route)}, or leave"
            " partition out to have it chosen",
        )
    if sum(counts) != num_layers:
        raise SpecError(
            path,
            f"the stages hold {sum(counts)} layers together but the model has {num_layers}; make the sum {num_layers}",
        )
    return tuple(pairwise(accumulate(counts, initial=0)))
