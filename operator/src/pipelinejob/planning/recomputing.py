"""Chooses what stages compute again, together with partition and schedule.

Where all fits, nothing is. Where memory is short there are two ways: layers move to stages that
have room, or stages compute some of their first layers again, as few as will do. For a partition
and a schedule the fewest of each rank are found exactly, as no rank's memory depends on another's.
Among partitions those are looked at that are best without any bound, best for ranks that are
slower by what they compute again, and best within memory, with nothing and with all computed
again; then, beside the one with the shortest step, all others if they are few, else those that
single layers moved lead to.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, pairwise
from math import comb

from pipelinejob.base.errors import SpecError, TooLargeError
from pipelinejob.costs.layers import Profile
from pipelinejob.costs.links import Links
from pipelinejob.costs.stages import Cuts
from pipelinejob.planning import choice as choices
from pipelinejob.planning.choice import EFFORT, Choice
from pipelinejob.planning.partition import PATH, does_not_fit
from pipelinejob.planning.playing import few
from pipelinejob.planning.step_prediction import predict_step
from pipelinejob.planning.ties import quickest
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.simulation.simulate import simulate
from pipelinejob.spec.job import PipelineJobSpec

_ROUNDS = 3  # of a partition for what is computed again, and what is computed again for that partition


def choose(
    spec: PipelineJobSpec,
    profile: Profile,
    *,
    links: Links | None = None,
    effort: int = EFFORT,
    attempts: int | None = None,
) -> Choice:
    """Choose partition, schedule and, where the spec leaves it open, what is computed again.

    Arguments and errors are those of `choice.choose`.
    """
    limits = profile.memory_limits(spec.parallelism.pipeline)
    is_given = not spec.schedule.leaves_recomputing_open or spec.serving is not None
    if limits is None or is_given:
        return choices.choose(spec, profile, links=links, effort=effort, attempts=attempts)
    search = _Search(spec, profile, limits, links=links, effort=effort, attempts=attempts)
    return search.best()


class _Search:
    def __init__(
        self,
        spec: PipelineJobSpec,
        profile: Profile,
        limits: Sequence[int],
        *,
        links: Links | None,
        effort: int,
        attempts: int | None,
    ) -> None:
        self._spec = spec
        self._profile = profile
        self._free = profile.model_copy(update={"device_memory_bytes": None, "stage_memory_bytes": None})
        self._limits = limits
        self._links = links
        self._effort = effort
        self._attempts = attempts

    def best(self) -> Choice:
        """Return the choice with the shortest step that fits. Raises SpecError where none does."""
        plain = None
        with suppress(TooLargeError):
            plain = self._choose(self._spec, self._profile)
        if plain is not None and plain.fits(self._limits) and not plain.pressed:
            return plain
        found = [each for each in (plain, *self._recomputing()) if each is not None and each.fits(self._limits)]
        if found:
            return self._bettered(min(found, key=self._step_s))
        if plain is not None:  # its partition is given, and fits in no way
            return plain
        raise TooLargeError(PATH, does_not_fit(self._spec.parallelism.pipeline, self._limits))

    def _recomputing(self) -> Iterator[Choice]:
        spec, tried = self._spec, set[tuple[int, ...]]()
        is_searched = spec.schedule.name is ScheduleName.AUTO  # which takes long each time
        for _ in range(1 if is_searched else _ROUNDS):
            made = self._with_least(self._choose(spec, self._free))
            yield made
            layers = made.division.schedule.recompute_layers or ()
            if layers in tried:
                break
            tried.add(layers)
            spec = self._spec.model_copy(update={"schedule": made.division.schedule})
        if is_searched:
            return
        whole = self._spec.schedule.model_copy(update={"recompute": True})
        with suppress(SpecError):
            yield self._with_least(self._choose(self._spec.model_copy(update={"schedule": whole}), self._profile))

    def _choose(self, spec: PipelineJobSpec, profile: Profile) -> Choice:
        return choices.choose(spec, profile, links=self._links, effort=self._effort, attempts=self._attempts)

    def _with_least(self, made: Choice) -> Choice:
        """Return a choice with as little computed again as its ranks' memory demands."""
        made = replace(made, division=replace(made.division, profile=self._profile))
        layers = tuple(least(made, rank, limit) for rank, limit in enumerate(self._limits))
        return made.recomputing(layers)

    def _step_s(self, made: Choice) -> float:
        replicas = self._spec.parallelism.data
        return predict_step(made.division, made.schedule_for, made.length, replicas=replicas).step_s

    def _bettered(self, made: Choice) -> Choice:
        """Try other partitions, each with what it has to compute again: all of few, or by moving single layers."""
        is_fixed = self._spec.partition.layers is not None or made.listed is not None
        if not self._effort or is_fixed or self._profile.concurrency is not None:
            return made
        schedule = made.schedule_for(few(self._spec.schedule, made.division.num_ranks))

        def seconds(cuts: Cuts) -> float:
            moved = self._with_least(made.over(cuts))
            return simulate(schedule, moved.division.costs).makespan_s if moved.fits(self._limits) else float("inf")

        effort = self._effort // (4 * sum(map(len, schedule.ranks)))
        num_layers, num_stages = len(self._profile.layers), len(made.division.cuts)
        if comb(num_layers - 1, num_stages - 1) <= effort:
            moved = min(_all_cuts(num_layers, num_stages), key=seconds)
        else:
            moved = quickest(made.division.cuts, seconds, allowed=lambda edges: edges[:, 0] == 0, effort=effort)
        other = self._with_least(made.over(moved))
        return min((made, other), key=self._step_s) if other.fits(self._limits) else made


def least(made: Choice, rank: int, limit: float) -> int:
    """Return how many of a rank's first layers have to be computed again for it to keep within a limit of bytes.

    All of them where even that is too much.
    """
    num_ranks = made.division.num_ranks

    def fits(layers: int) -> bool:
        again = tuple(layers if each == rank else 0 for each in range(num_ranks))
        return made.recomputing(again).rank_bytes(rank) <= limit

    below, enough = -1, sum(end - first for first, end in made.division.held(rank))
    while enough - below > 1:
        middle = (below + enough) // 2
        below, enough = (below, middle) if fits(middle) else (middle, enough)
    return enough


def _all_cuts(num_layers: int, num_stages: int) -> Iterator[Cuts]:
    for borders in combinations(range(1, num_layers), num_stages - 1):
        yield tuple(pairwise((0, *borders, num_layers)))
