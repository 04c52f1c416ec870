"""Partition of layers where ranks hold several stages: nearly the least busy busiest rank, by local search.

A rank's stages add up, so that no program over prefixes of the layers is exact as in
`partition.py`. A search starts from the partition whose busiest *stage*, measured against its
ranks' speeds, is least, and moves single layers from stage to stage, those in between shifting
along, while that helps: first what does not fit into memory, then the busiest rank, then the
spread over ranks, then that over stages. Where layers cost alike no partition is better; how near
the result comes where they do not is held by tests/core/planning/test_partition_chunks.py, against
every other partition there is.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelinejob.base.errors import SpecError, TooLargeError
from pipelinejob.planning.partition import PATH, does_not_fit, partition
from pipelinejob.schedules.actions import Route

Floats = npt.NDArray[np.float64]
Cuts = npt.NDArray[np.int64]  # 0, the first layer of each further stage, the number of layers; or a row of them a case

_ALIKE = 1e-9  # parts of the whole below which a difference decides nothing


def partition_chunks(
    costs: Sequence[float],
    routes: Sequence[Route],
    *,
    speeds: Sequence[float] | None = None,
    memory: Sequence[Sequence[float]] | None = None,
    memory_limits: Sequence[float] | None = None,
) -> tuple[tuple[int, int], ...]:
    """Return the layers of each stage of the routes as [first, end), none empty, none left over.

    A rank works on a micro-batch for the stages that it holds of one route; where there are
    several, for their mean. `memory[r][k]` is what layer k takes on rank r, at most
    `memory_limits[r]` together. Raises SpecError if the stages cannot share the layers, or none of
    the partitions that were looked at fits.
    """
    num_ranks, num_stages = len(set(routes[0])), len(routes[0])
    if num_stages > len(costs):
        raise SpecError(
            PATH,
            f"{num_ranks} stages with {num_stages // num_ranks} stretches of layers each cannot share {len(costs)} "
            f"layers; use at most {len(costs) * num_ranks // num_stages} stages, or a schedule like 1F1B",
        )
    problem = _Problem(costs, routes, speeds or [1.0] * num_ranks, memory or (), memory_limits or ())
    start = partition(costs, num_stages, speeds=problem.stage_speeds)
    cuts = _bettered(problem, np.array([0, *(end for _, end in start)]))
    if problem.standing(cuts)[0] > 0:
        raise TooLargeError(PATH, does_not_fit(num_ranks, memory_limits or ()))
    return tuple(pairwise(map(int, cuts)))


class _Problem:
    """Costs and shapes as arrays. s counts stages, r ranks, k layers, c cases looked at together."""

    def __init__(
        self,
        costs: Sequence[float],
        routes: Sequence[Route],
        speeds: Sequence[float],
        memory: Sequence[Sequence[float]],
        limits: Sequence[float],
    ) -> None:
        visits = np.zeros((len(speeds), len(routes[0])))  # r, s: the share of micro-batches that meet stage s there
        for route in routes:
            visits[list(route), range(len(route))] += 1 / len(routes)
        self._work = visits / np.asarray(speeds)[:, np.newaxis]
        self._holds = visits > 0
        self._seconds = np.concatenate(([0.0], np.cumsum(costs)))
        self._bytes = np.array([[0.0, *np.cumsum(layers)] for layers in memory])  # r, k
        self._limits = np.asarray(limits, dtype=np.float64)
        chunks = visits.sum(axis=1)
        self.stage_speeds = [float(of_stage @ (speeds / chunks)) for of_stage in visits.T]

    def standings(self, cuts: Cuts) -> Floats:
        """Return scores of shape (c, 4): bytes over the limit, busiest rank, spread of ranks, spread of stages.

        The first counts most. All are shares of the whole; differences below `_ALIKE` are rounded
        away.
        """
        stages = np.diff(self._seconds[cuts])  # c, s
        ranks = stages @ self._work.T
        standings = np.stack(
            [self._overflow(cuts), ranks.max(axis=1), np.square(ranks).sum(axis=1), np.square(stages).sum(axis=1)],
            axis=1,
        )
        whole = float(self._seconds[-1]) or 1.0
        return np.round(standings / [1.0, whole, whole**2, whole**2] / _ALIKE) * _ALIKE

    def standing(self, cuts: Cuts) -> tuple[float, ...]:
        """Return the score of one partition."""
        return tuple(self.standings(cuts[np.newaxis])[0])

    def _overflow(self, cuts: Cuts) -> Floats:
        if not self._limits.size:
            return np.zeros(len(cuts))
        taken = np.diff(self._bytes[:, cuts]) * self._holds[:, np.newaxis]  # r, c, s
        over: Floats = np.maximum(taken.sum(axis=2) / self._limits[:, np.newaxis] - 1, 0).sum(axis=0)
        return over


def _bettered(problem: _Problem, cuts: Cuts) -> Cuts:
    """Move single layers until no move helps."""
    standing, unchanged, giver = problem.standing(cuts), 0, 0
    while unchanged < len(cuts) - 1:
        cases = handed_on(cuts, giver)
        standings = problem.standings(cases)
        best = np.lexsort(standings.T[::-1])[0]
        unchanged += 1
        if tuple(standings[best]) < standing:
            cuts, standing, unchanged = cases[best], tuple(standings[best]), 0
        giver = (giver + 1) % (len(cuts) - 1)
    return cuts


def handed_on(cuts: Cuts, giver: int) -> Cuts:
    """Return the partitions in which one layer of a stage has gone to each other one, those in between shifting along.

    Row b is for stage b; where the giver has but one layer, and in its own row, nothing has
    changed.
    """
    num_stages = len(cuts) - 1
    cases = np.tile(cuts, (num_stages, 1))
    if cuts[giver + 1] - cuts[giver] == 1:
        return cases
    for taker in range(num_stages):
        if taker > giver:
            cases[taker, giver + 1 : taker + 1] -= 1
        elif taker < giver:
            cases[taker, taker + 1 : giver + 1] += 1
    return cases
