"""Which of the partitions with the same busiest rank: the one with the shortest simulated step.

How stages of unequal length follow each other changes how soon a pipeline fills and empties, by more than a layer's
seconds: larger stages first, say, let 1F1B's first rank begin its backward passes sooner.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from pipelinejob.partition_chunks import handed_on
from pipelinejob.stage_costs import Cuts

_ALIKE = 1 - 1e-9


def quickest(cuts: Cuts, seconds: Callable[[Cuts], float | None], *, effort: int) -> Cuts:
    """Move single layers from stage to stage while that shortens the step; at most `effort` steps are looked at.

    `seconds` gives a step's seconds, or None for a partition that will not do; if `cuts` will not, they are left alone.
    """
    best = seconds(cuts)
    if best is None:
        return cuts
    looked_at, giver, unchanged = 1, 0, 0
    while unchanged < len(cuts):
        unchanged += 1
        for moved in _moves(cuts, giver):
            if looked_at >= effort:
                return cuts
            looked_at += 1
            found = seconds(moved)
            if found is not None and found < best * _ALIKE:
                cuts, best, unchanged = moved, found, 0
        giver = (giver + 1) % len(cuts)
    return cuts


def _moves(cuts: Cuts, giver: int) -> list[Cuts]:
    edges = np.array([0, *(end for _, end in cuts)])
    cases = (tuple(map(int, case)) for case in handed_on(edges, giver) if not np.array_equal(case, edges))
    return [tuple(pairwise(case)) for case in cases]
