"""Breaks ties between partitions with the same busiest rank by the shortest simulated step.

How stages of unequal length follow each other changes how soon a pipeline fills and empties, by
more than a layer's seconds: larger stages first, say, let 1F1B's first rank begin its backward
passes sooner.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelinejob.costs.stages import Cuts
from pipelinejob.planning.chunks import handed_on

Edges = npt.NDArray[np.int64]  # a row a partition: 0, the first layer of each further stage, the number of layers

_ALIKE = 1 - 1e-9


def quickest(
    cuts: Cuts,
    seconds: Callable[[Cuts], float],
    *,
    allowed: Callable[[Edges], npt.NDArray[np.bool_]],
    effort: int,
) -> Cuts:
    """Move single layers from stage to stage while that shortens the step; at most `effort` steps are looked at.

    `seconds` gives a step's seconds, `allowed` says which partitions will do at all.
    """
    best, looked_at, giver, unchanged = seconds(cuts), 1, 0, 0
    while unchanged < len(cuts):
        unchanged += 1
        for moved in _moves(cuts, giver, allowed):
            if looked_at >= effort:
                return cuts
            looked_at += 1
            found = seconds(moved)
            if found < best * _ALIKE:
                cuts, best, unchanged = moved, found, 0
        giver = (giver + 1) % len(cuts)
    return cuts


def _moves(cuts: Cuts, giver: int, allowed: Callable[[Edges], npt.NDArray[np.bool_]]) -> list[Cuts]:
    if cuts[giver][1] - cuts[giver][0] == 1:
        return []  # it has none to give
    cases = handed_on(np.array([0, *(end for _, end in cuts)]), giver)
    wanted = allowed(cases)
    wanted[giver] = False  # its own row is as it was
    return [tuple(pairwise(map(int, case))) for case in cases[wanted]]
