"""What is expected of a step: simulated whole, or, of a long one, from two shorter ones."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, lcm, log2

from pipelinejob.schedule_spec import ScheduleSpec
from pipelinejob.schedules.actions import ActionKind, Schedule
from pipelinejob.simulate import simulate
from pipelinejob.simulation import Simulation
from pipelinejob.stage_costs import Division

_REPEATS_FROM = 256  # micro-batches


@dataclass(frozen=True, kw_only=True)
class Length:
    """How a step of many micro-batches follows from two shorter ones.

    Once full, a pipeline does the same for each further round of micro-batches, so that from some length on times and
    memory grow by equal amounts. Both lengths are beyond that point, and whole rounds away from the step's own.
    """

    num_micro_batches: int
    short: int
    long: int

    def values(self, of: Callable[[int], tuple[float, ...]]) -> tuple[float, ...]:
        """Give the step's values, from a function that gives those of a number of micro-batches."""
        long = of(self.long)
        if self.long == self.num_micro_batches:
            return long
        further = (self.num_micro_batches - self.long) / (self.long - self.short)
        return tuple(now + (now - before) * further for before, now in zip(of(self.short), long, strict=True))


def whole(schedule: ScheduleSpec) -> Length:
    """Look at all of a step."""
    return Length(num_micro_batches=schedule.micro_batches, short=schedule.micro_batches, long=schedule.micro_batches)


def length_of(schedule: ScheduleSpec, num_ranks: int) -> Length:
    """Look at enough of a step whose schedule repeats itself to know all of it."""
    count, period = schedule.micro_batches, _round(schedule, num_ranks)
    half = period * ceil(max(_REPEATS_FROM, 4 * num_ranks) / 2 / period)
    if count <= 2 * half + period:
        return whole(schedule)
    long = 2 * half + count % period
    return Length(num_micro_batches=count, short=long - half, long=long)


def few(schedule: ScheduleSpec, num_ranks: int) -> int:
    """Give a number of micro-batches that shows how a step begins and ends, and some of its middle."""
    count, period = schedule.micro_batches, _round(schedule, num_ranks)
    return min(count, 2 * period + count % period)


def _round(schedule: ScheduleSpec, num_ranks: int) -> int:
    """Give after how many micro-batches a schedule repeats itself: by ranks, by pairs, by asynchronous updates."""
    return lcm(2 * num_ranks, schedule.update_interval or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """One step's promise; lists are by rank."""

    step_s: float  # with what follows the schedule: the rest of the reduction over replicas, and the optimiser
    compute_s: tuple[float, ...]
    update_s: tuple[float, ...]  # the optimiser's

    @property
    def bubble_ratios(self) -> tuple[float, ...]:
        """Give each rank's share of waiting, as timeline.bubble_ratio has it."""
        return tuple(
            1 - compute / (self.step_s - update) for compute, update in zip(self.compute_s, self.update_s, strict=True)
        )


def outlook(division: Division, schedule_for: Callable[[int], Schedule], length: Length, *, replicas: int) -> Outlook:
    """Simulate the step; `schedule_for` gives the schedule of a number of micro-batches."""

    def seen(num_micro_batches: int) -> tuple[float, ...]:
        simulation = simulated(division, schedule_for(num_micro_batches), replicas=replicas)
        within = _updates_within(simulation)
        compute = (all_s - update for all_s, update in zip(simulation.compute_s, within, strict=True))
        updates = (a + b for a, b in zip(within, simulation.optimizer_s, strict=True))
        return simulation.step_s, *compute, *updates

    step_s, *others = length.values(seen)
    return Outlook(
        step_s=step_s, compute_s=tuple(others[: division.num_ranks]), update_s=tuple(others[division.num_ranks :])
    )


def _updates_within(simulation: Simulation) -> tuple[float, ...]:
    """Give each rank's seconds of updates inside its list; only asynchronous schedules have any."""
    ranks = zip(simulation.schedule.ranks, simulation.started_s, simulation.ended_s, strict=True)
    return tuple(
        sum(end - start for action, start, end in zip(*rank, strict=True) if action.kind is ActionKind.UPDATE)
        for rank in ranks
    )


def simulated(division: Division, schedule: Schedule, *, replicas: int) -> Simulation:
    """Simulate a schedule, with what follows it in a step."""
    reduction_s = tuple(summing_s(division, stage, replicas) for stage in range(len(division.cuts)))
    optimizer_s = [division.optimizer_s(rank) for rank in range(division.num_ranks)]
    if schedule.is_asynchronous:  # each update sums its own gradients
        optimizer_s = [
            seconds + sum(reduction_s[stage] for _, stage in schedule.held_by(rank))
            for rank, seconds in enumerate(optimizer_s)
        ]
    return simulate(
        schedule,
        division.costs,
        concurrency=division.profile.concurrency,
        reduction_s=() if schedule.is_asynchronous else reduction_s,
        optimizer_s=optimizer_s,
    )


def summing_s(division: Division, stage: int, replicas: int) -> float:
    """Give the time in which all copies of a stage sum its gradients.

    There is one copy in each replica and, of schedules that run from both ends, for each route; of a tied table twice
    as many where embedding and head stand apart. Bytes go round as in a ring, and the first of them arrive as in a
    tree, there and back: who sums takes whichever is quicker for the size at hand.
    """
    bandwidth = division.ring_bytes_per_s(stage)
    if bandwidth is None:
        return 0.0
    copies = replicas * len(division.routes)
    tied = division.tied_bytes if division.is_tied_apart and stage in {0, len(division.cuts) - 1} else 0
    own = sum(layer.parameter_bytes for layer in division.layers(stage)) - tied
    hops = 2 * ceil(log2(2 * copies if tied else copies))
    return (_ring(copies) * own + _ring(2 * copies) * tied) / bandwidth + hops * division.ring_latency_s(stage)


def _ring(copies: int) -> float:
    """Give what each of n members of a ring sends, in units of what is summed: 2(n-1)/n."""
    return 2 * (copies - 1) / copies
