"""Prediction of a step: simulated whole, or, if it is long, extrapolated from two shorter ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2

from pipelinejob.costs.stages import Division
from pipelinejob.planning.playing import round_of
from pipelinejob.schedules.actions import ActionKind, Schedule
from pipelinejob.schedules.costs import Costs
from pipelinejob.simulation.result import Simulation
from pipelinejob.simulation.simulate import simulate
from pipelinejob.spec.schedules.schedule import ScheduleSpec

_REPEATS_FROM = 256  # micro-batches


@dataclass(frozen=True, kw_only=True)
class Length:
    """The lengths of the steps that are simulated, from which a step of many micro-batches is extrapolated.

    Once full, a pipeline does the same for each further round of micro-batches, so that from some
    length on times and memory grow by equal amounts. Both lengths are beyond that point, and whole
    rounds away from the step's own.
    """

    num_micro_batches: int
    short: int
    long: int

    def values(self, of: Callable[[int], tuple[float, ...]]) -> tuple[float, ...]:
        """Return the step's values; `of` returns those of a step of so many micro-batches."""
        long = of(self.long)
        if self.long == self.num_micro_batches:
            return long
        further = (self.num_micro_batches - self.long) / (self.long - self.short)
        return tuple(now + (now - before) * further for before, now in zip(of(self.short), long, strict=True))


def whole(schedule: ScheduleSpec) -> Length:
    """Simulate all of a step."""
    return Length(num_micro_batches=schedule.micro_batches, short=schedule.micro_batches, long=schedule.micro_batches)


def length_of(schedule: ScheduleSpec, num_ranks: int) -> Length:
    """Choose lengths from which a step with a periodic schedule can be extrapolated."""
    count, period = schedule.micro_batches, round_of(schedule, num_ranks)
    half = period * ceil(max(_REPEATS_FROM, 4 * num_ranks) / 2 / period)
    if count <= 2 * half + period:
        return whole(schedule)
    long = 2 * half + count % period
    return Length(num_micro_batches=count, short=long - half, long=long)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPrediction:
    """The prediction of one step; tuples are by rank."""

    step_s: float  # with what follows the schedule: the rest of the reduction over replicas, and the optimiser
    compute_s: tuple[float, ...]
    update_s: tuple[float, ...]  # the optimiser's

    @property
    def bubble_ratios(self) -> tuple[float, ...]:
        """Each rank's share of idle time, as defined by timeline.bubble_ratio."""
        return tuple(
            1 - compute / (self.step_s - update) for compute, update in zip(self.compute_s, self.update_s, strict=True)
        )


def predict_step(
    division: Division, schedule_for: Callable[[int], Schedule], length: Length, *, replicas: int
) -> StepPrediction:
    """Predict a step; `schedule_for` returns the schedule of a number of micro-batches."""

    def seen(num_micro_batches: int) -> tuple[float, ...]:
        simulation = simulated(division, schedule_for(num_micro_batches), replicas=replicas)
        within = _updates_within(simulation)
        compute = (all_s - update for all_s, update in zip(simulation.compute_s, within, strict=True))
        updates = (a + b for a, b in zip(within, simulation.optimizer_s, strict=True))
        return simulation.step_s, *compute, *updates

    step_s, *others = length.values(seen)
    return StepPrediction(
        step_s=step_s, compute_s=tuple(others[: division.num_ranks]), update_s=tuple(others[division.num_ranks :])
    )


def _updates_within(simulation: Simulation) -> tuple[float, ...]:
    """Return each rank's seconds of updates inside its schedule; only asynchronous schedules have any."""
    ranks = zip(simulation.schedule.ranks, simulation.started_s, simulation.ended_s, strict=True)
    return tuple(
        sum(end - start for action, start, end in zip(*rank, strict=True) if action.kind is ActionKind.UPDATE)
        for rank in ranks
    )


def simulated(
    division: Division,
    schedule: Schedule,
    *,
    replicas: int,
    costs: Costs | None = None,
    reduction_s: Sequence[float] | None = None,
) -> Simulation:
    """Simulate a schedule, with what follows it in a step.

    `costs`, and `reduction_s`, the seconds that each stage's gradients take to be summed over
    replicas, are the division's own unless given.
    """
    if reduction_s is None:
        reduction_s = tuple(summing_s(division, stage, replicas) for stage in range(len(division.cuts)))
    optimizer_s = [division.optimizer_s(rank) for rank in range(division.num_ranks)]
    if schedule.is_asynchronous:  # each update sums its own gradients
        optimizer_s = [
            seconds + sum(reduction_s[stage] for _, stage in schedule.held_by(rank))
            for rank, seconds in enumerate(optimizer_s)
        ]
    return simulate(
        schedule,
        costs or division.costs,
        concurrency=division.profile.concurrency_of(replicas),
        reduction_s=() if schedule.is_asynchronous else reduction_s,
        optimizer_s=optimizer_s,
    )


def summing_s(division: Division, stage: int, replicas: int) -> float:
    """Return the time in which all copies of a stage sum its gradients.

    There is one copy in each replica and, of schedules that run from both ends, for each route; of
    a tied table twice as many where embedding and head stand apart. Bytes go round as in a ring,
    and the first of them arrive as in a tree, there and back: who sums takes whichever is quicker
    for the size at hand. Experts that replicas divide have fewer copies. Of parameters that are
    sharded, too, each copy is sent the sums of its share alone, which is one way.
    """
    bandwidth = division.ring_bytes_per_s(stage)
    if bandwidth is None:
        return 0.0
    copies = replicas * len(division.routes)
    tied = division.tied_bytes if division.is_tied_apart and stage in {0, len(division.cuts) - 1} else 0
    of_experts = sum(layer.expert_bytes for layer in division.layers(stage))
    own = sum(layer.parameter_bytes for layer in division.layers(stage)) - tied - of_experts
    ways = 1 if division.weight_shards > 1 else 2
    hops = 2 * ceil(log2(2 * copies)) if tied else ways * ceil(log2(copies))
    summed = _ring(copies) * own + _ring(copies // division.expert) * of_experts
    num_bytes = summed * ways / 2 + _ring(2 * copies) * tied
    return num_bytes / bandwidth + hops * division.ring_latency_s(stage)


def _ring(copies: int) -> float:
    """Return the data that each of n members of a ring sends, relative to the data summed: 2(n-1)/n."""
    return 2 * (copies - 1) / copies
