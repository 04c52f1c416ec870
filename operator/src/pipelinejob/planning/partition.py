"""Contiguous partition of layers into stages with the least busy busiest stage, exactly.

A pipeline runs at the pace of its slowest stage, so that stage's seconds are what is minimised
(min-max). The dynamic program

    best[i][e] = min over s < e of max(best[i-1][s], load(i, s, e))    load(i, s, e): seconds of layers [s, e) on stage
    i

is exact for any costs, speeds and memory limits. Of the many partitions with the same busiest
stage the evenest is taken (the least sum of squared loads, the same program with + for max), and
of equally even ones that with the larger stages last, because the first stages hold the most
micro-batches in memory. Equal means to one part in 10^12, so that rounding decides nothing.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelinejob.base.errors import SpecError, TooLargeError

Floats = npt.NDArray[np.float64]

PATH = "spec.parallelism.pipeline"
_TIE = 1 + 1e-12


def partition(
    costs: Sequence[float],
    num_stages: int,
    *,
    speeds: Sequence[float] | None = None,
    memory: Sequence[Sequence[float]] | None = None,
    memory_limits: Sequence[float] | None = None,
) -> tuple[tuple[int, int], ...]:
    """Return each stage's layers as [first, end), none empty, none left over.

    `costs` are a layer's seconds; `speeds[i]` divides them on stage i; `memory[i][k]` is what
    layer k takes on stage i, at most `memory_limits[i]` together. Raises SpecError if the stages
    cannot share the layers.
    """
    if num_stages > len(costs):
        raise SpecError(PATH, f"{num_stages} stages cannot share {len(costs)} layers; use at most {len(costs)}")
    loads = _Loads(costs, speeds or [1.0] * num_stages, memory, memory_limits)
    bottleneck = _bottleneck(loads, num_stages)
    if bottleneck is None:
        raise TooLargeError(PATH, does_not_fit(num_stages, memory_limits or ()))
    _, cuts = _solve(loads, num_stages, lambda best, load: best + load * load, limit=bottleneck * _TIE)
    return tuple(pairwise(cuts))


def _bottleneck(loads: "_Loads", num_stages: int) -> float | None:
    """Return the least possible seconds of the busiest stage; None where no partition fits into memory.

    The search is bounded, so that only narrow runs of layers are looked at, and the bound doubled
    until one is found.
    """
    limit = loads.lower_bound
    while True:
        value, _ = _solve(loads, num_stages, np.maximum, limit=limit)
        if np.isfinite(value):
            return value
        if limit >= loads.upper_bound:
            return None
        limit *= 2


def does_not_fit(num_stages: int, limits: Sequence[float]) -> str:
    gib = max(limits, default=0.0) / 2**30
    return (
        f"no split of the layers over {num_stages} stages fits into {gib:.1f} GiB a stage; "
        "use more stages or smaller micro-batches"
    )


class _Loads:
    """Seconds of every run of layers, on every stage; infinite where it does not fit into memory."""

    def __init__(
        self,
        costs: Sequence[float],
        speeds: Sequence[float],
        memory: Sequence[Sequence[float]] | None,
        limits: Sequence[float] | None,
    ) -> None:
        self.num_layers = len(costs)
        self._seconds = _prefix_sums(costs)
        self._speeds = speeds
        self._bytes = [_prefix_sums(stage) for stage in memory or ()]
        self._limits = limits or ()
        self.lower_bound = max(self._seconds[-1] / sum(speeds), max(costs) / max(speeds)) * _TIE
        self.upper_bound = self._seconds[-1] / min(speeds)

    def of_width(self, stage: int, width: int) -> Floats:
        """Return the load of layers [e - width, e) for e = width, width + 1, ..."""
        seconds = (self._seconds[width:] - self._seconds[:-width]) / self._speeds[stage]
        if self._limits:
            taken = self._bytes[stage][width:] - self._bytes[stage][:-width]
            seconds = np.where(taken <= self._limits[stage] * _TIE, seconds, np.inf)
        return seconds


def _prefix_sums(values: Sequence[float]) -> Floats:
    return np.concatenate(([0.0], np.cumsum(np.asarray(values, dtype=np.float64))))


def _solve(
    loads: _Loads, num_stages: int, combine: Callable[[Floats, Floats], Floats], *, limit: float
) -> tuple[float, list[int]]:
    """Minimise the combined loads over all partitions whose every load is within the limit; infinity if there is none.

    Returns the minimum and the partition's cuts, 0 and the number of layers among them.
    """
    best = np.full(loads.num_layers + 1, np.inf)
    best[0] = 0.0
    widths = []
    for stage in range(num_stages):
        best, width = _add_stage(loads, stage, best, combine, limit=limit, widest=loads.num_layers - num_stages + 1)
        widths.append(width)
    if not np.isfinite(best[-1]):
        return float("inf"), []
    cuts = [loads.num_layers]
    for width in reversed(widths):
        cuts.append(cuts[-1] - int(width[cuts[-1]]))
    return float(best[-1]), cuts[::-1]


def _add_stage(
    loads: _Loads, stage: int, before: Floats, combine: Callable[[Floats, Floats], Floats], *, limit: float, widest: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Extend the best partitions of every prefix of layers by one stage; give their values and that stage's widths."""
    best = np.full_like(before, np.inf)
    chosen = np.zeros(len(before), dtype=np.int64)
    for width in range(1, widest + 1):
        load = loads.of_width(stage, width)
        within = load <= limit
        if not within.any():  # nor is any wider run
            break
        candidate = np.where(within, combine(before[:-width], load), np.inf)
        better = (candidate <= best[width:] * _TIE) & np.isfinite(
            candidate
        )  # ties go to the wider run, on the later stage
        best[width:] = np.where(better, np.minimum(candidate, best[width:]), best[width:])
        chosen[width:] = np.where(better, width, chosen[width:])
    return best, chosen
