"""Chooses partition and schedule together, within the memory of each stage's device.

Most schedules follow from their name, and so do the routes that the layers are divided over. Those
that look at costs get them from the partition of whatever routes they ask about, so that one which
chooses among routes chooses among partitions.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial

import numpy as np

from pipelinejob.base.errors import SpecError, TooLargeError
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob.costs.links import Links
from pipelinejob.costs.shares import mean_share
from pipelinejob.costs.stages import Cuts, Division
from pipelinejob.planning.chunks import partition_chunks
from pipelinejob.planning.dimensions import shards, weight_shards
from pipelinejob.planning.experts import expert_ranks
from pipelinejob.planning.partition import PATH, does_not_fit, partition
from pipelinejob.planning.plain_cuts import given_cuts, simple_cuts
from pipelinejob.planning.playing import check_caps, few, setting_of, written_schedule
from pipelinejob.planning.step_prediction import Length, length_of, predict_step, whole
from pipelinejob.planning.ties import quickest
from pipelinejob.scheduler.catalogue import FAMILIES, build, family
from pipelinejob.schedules.actions import Route, Schedule, ScheduleError, straight
from pipelinejob.schedules.costs import Costs
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.memory import live_versions, peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.simulation.simulate import simulate
from pipelinejob.spec.job import PipelineJobSpec

EFFORT = 100_000  # actions simulated to shorten a step by the order of its stages: about a tenth of a second
_ATTEMPTS = 6  # at a partition that fits into memory
FEW_ATTEMPTS = 3
_ALIKE = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A partition and a schedule. `schedule_for` returns the schedule of a number of micro-batches.

    `listed` is the schedule where it does not follow from its name and sizes, and has to be
    written down. It is `pressed` where the partition gives way to memory.
    """

    division: Division
    schedule_for: Callable[[int], Schedule]
    length: Length
    listed: Schedule | None = None
    pressed: bool = False

    @cached_property
    def memory_bytes(self) -> tuple[int, ...]:
        """The predicted peak memory of each rank, in bytes."""
        division = self.division

        def taken(num_micro_batches: int) -> tuple[float, ...]:
            schedule = self.schedule_for(num_micro_batches)
            return tuple(division.memory_bytes(schedule, rank) for rank in range(division.num_ranks))

        return tuple(map(round, self.length.values(taken)))

    def fits(self, limits: Sequence[float] | None) -> bool:
        """Tell whether every rank's peak is within its limit of bytes."""
        return limits is None or all(taken <= limit for taken, limit in zip(self.memory_bytes, limits, strict=True))

    @cached_property
    def makespan_s(self) -> float:
        """The predicted seconds from the step's first action to its last."""
        return self.length.values(lambda count: (simulate(self.schedule_for(count), self.division.costs).makespan_s,))[
            0
        ]

    def rank_bytes(self, rank: int) -> float:
        """Predict the peak memory of one rank, in bytes."""
        return self.length.values(lambda count: (self.division.memory_bytes(self.schedule_for(count), rank),))[0]

    def recomputing(self, layers: tuple[int, ...]) -> "Choice":
        """Return the same with so many first layers of each rank computed again."""
        return replace(self, division=replace(self.division, schedule=self.division.schedule.recomputing(layers)))

    def over(self, cuts: Cuts) -> "Choice":
        """Return the same schedule over another partition."""
        return replace(self, division=replace(self.division, cuts=cuts))


@dataclass(frozen=True, kw_only=True)
class _MemoryBudget:
    """The memory that the next try may use, by rank, as the tries before it showed.

    `in_flight` micro-batches and weight `versions` are what the partition leaves room for within
    `limits`.
    """

    limits: tuple[float, ...]
    in_flight: tuple[float, ...]
    versions: tuple[float, ...]

    def after(self, choice: Choice, limits: Sequence[float]) -> "_MemoryBudget":
        """Tighten the limits of the ranks that exceeded them."""
        taken = zip(self.limits, choice.memory_bytes, limits, strict=True)
        return replace(self, limits=tuple(each / max(1.0, bytes_ / limit) for each, bytes_, limit in taken))


def choose(
    spec: PipelineJobSpec,
    profile: Profile,
    *,
    links: Links | None = None,
    effort: int = EFFORT,
    attempts: int | None = None,
) -> Choice:
    """Choose a partition and a schedule that fit into memory.

    At most `effort` actions are simulated to shorten the step by the order of its stages; with 0
    the partition is the one with the least busy rank, and no other is looked at. Raises SpecError
    where nothing fits, or was not found within so many `attempts`.
    """
    limits = profile.memory_limits(spec.parallelism.pipeline)
    budget: _MemoryBudget | None = None  # nothing has to be kept to as long as all fits
    for _ in range(attempts or (_ATTEMPTS if effort else FEW_ATTEMPTS)):
        choice = _Chooser(spec, profile, budget, links=links, effort=effort).choose()
        if limits is None or spec.partition.layers is not None or choice.fits(limits):
            return replace(choice, pressed=True) if budget else choice
        budget = _first_budget(choice, limits) if budget is None else budget.after(choice, limits)
    raise TooLargeError(PATH, does_not_fit(spec.parallelism.pipeline, limits or ()))


def _first_budget(choice: Choice, limits: Sequence[float]) -> _MemoryBudget:
    num_ranks = choice.division.num_ranks
    if choice.division.schedule.name is ScheduleName.AUTO:  # holds as much as there is room for
        one = (1.0,) * num_ranks
        return _MemoryBudget(limits=tuple(limits), in_flight=one, versions=one)

    def held(num_micro_batches: int) -> tuple[float, ...]:
        schedule = choice.schedule_for(num_micro_batches)
        return (*peak_activations(schedule), *map(live_versions, schedule.ranks))

    values = choice.length.values(held)
    return _MemoryBudget(limits=tuple(limits), in_flight=values[:num_ranks], versions=values[num_ranks:])


class _Chooser:
    """One try: a partition and a schedule for a spec, within a memory budget."""

    def __init__(
        self, spec: PipelineJobSpec, profile: Profile, budget: _MemoryBudget | None, *, links: Links | None, effort: int
    ) -> None:
        self._spec = spec
        self._links = links
        self._effort = effort
        self._profile = profile
        self._budget = budget
        self._num_ranks = spec.parallelism.pipeline
        self._division = cache(self._divided)
        self._leaders: dict[tuple[Route, ...], Choice] = {}
        self._goes_one_way = False  # as the sums of two copies' gradients would take longer than they save

    def choose(self) -> Choice:
        spec = self._spec.schedule
        if spec.name is not ScheduleName.CUSTOM and not family(spec.name).looks_at_costs:
            return self._by_name(spec.name)
        if spec.name is ScheduleName.AUTO:
            return self._searched()
        is_written = spec.name is ScheduleName.CUSTOM
        listed = written_schedule(self._spec) if is_written else self._built(spec.name, spec.micro_batches)
        return self._bettered(self._of_list(listed, self._division(listed.routes)))

    def _searched(self) -> Choice:
        """Choose the schedule with the shorter step: a searched one, or the best named one.

        What is searched for is the shortest list of actions. Of two that are nearly as long, a
        step may prefer the one whose gradients are summed sooner.
        """
        limits = self._profile.memory_limits(self._num_ranks)
        named = self._best_listed()
        is_free = self._budget is None and self._spec.partition.layers is None
        if is_free and named is not None and not named.fits(limits):
            return named  # memory is scarce: what is searched for without regard to it would not fit either
        self._goes_one_way = named is not None and len(named.division.routes) == 1
        listed = self._built(ScheduleName.AUTO, self._spec.schedule.micro_batches)
        found = self._of_list(listed, self._led(listed.routes))
        choices = [found, self._bettered(found), *([named] if named else [])]
        return min([each for each in choices if each.fits(limits)] or choices, key=self._step_s)

    def _best_listed(self) -> Choice | None:
        """Return the best choice with a named schedule, as a list of actions; None if there is none."""
        self._leaders = self._best_named()
        best = min(self._leaders.values(), key=self._step_s, default=None)
        return best and self._of_list(best.schedule_for(self._spec.schedule.micro_batches), best.division)

    def _of_list(self, listed: Schedule, division: Division) -> Choice:
        """Return a choice whose schedule is stored as a list of actions."""
        length = whole(self._spec.schedule)
        return Choice(division=division, schedule_for=lambda _: listed, length=length, listed=listed)

    def _step_s(self, choice: Choice) -> float:
        """Predict the seconds of a step, including gradient reduction and updates at its end."""
        replicas = self._spec.parallelism.data
        return predict_step(choice.division, choice.schedule_for, choice.length, replicas=replicas).step_s

    def _by_name(self, name: ScheduleName) -> Choice:
        """Choose the partition for a named schedule."""
        schedule_for, length = cache(partial(self._built, name)), length_of(self._spec.schedule, self._num_ranks)
        division = self._division(schedule_for(length.long).routes)
        return self._bettered(Choice(division=division, schedule_for=schedule_for, length=length))

    def _best_named(self) -> dict[tuple[Route, ...], Choice]:
        """Return, for each set of routes, the best named schedule.

        Over the partitions of these `auto` is looked for, so that it loses to none of them.
        """
        leaders: dict[tuple[Route, ...], Choice] = {}
        for each in FAMILIES.values():
            if each.looks_at_costs or each.name in {*ASYNCHRONOUS, ScheduleName.FORWARD_ONLY}:
                continue
            with suppress(SpecError):  # not for these sizes, caps or layers
                choice = self._by_name(each.name)
                routes = choice.division.routes
                if routes not in leaders or self._step_s(choice) < self._step_s(leaders[routes]):
                    leaders[routes] = choice
        return leaders

    def _led(self, routes: tuple[Route, ...]) -> Division:
        return self._leaders[routes].division if routes in self._leaders else self._division(routes)

    def _built(self, name: ScheduleName, num_micro_batches: int) -> Schedule:
        """Make the schedule of a number of micro-batches.

        Raises SpecError where it does not exist for these sizes and caps.
        """
        asked = setting_of(self._spec.schedule, self._num_ranks)
        caps = self._caps(asked.activation_caps)
        looks = family(name).looks_at_costs
        setting = replace(asked, num_micro_batches=num_micro_batches, activation_caps=caps)
        try:
            schedule = build(name, replace(setting, costs=self._costs)) if looks else _by_sizes(name, setting)
        except ScheduleError as error:
            if caps != asked.activation_caps:
                limits = self._profile.memory_limits(self._num_ranks) or ()
                raise TooLargeError(PATH, does_not_fit(self._num_ranks, limits)) from error
            raise SpecError("spec.schedule", str(error)) from error
        check_caps(name, schedule, caps)
        return schedule

    def _caps(self, asked: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Return the activation caps: those of the spec, and for `auto` no more than memory allows."""
        if self._budget is None or self._spec.schedule.name is not ScheduleName.AUTO:
            return asked
        division = self._division((straight(self._num_ranks),))
        left = tuple(division.room_for(rank, limit) for rank, limit in enumerate(self._budget.limits))
        return tuple(map(min, asked or left, left))

    def _costs(self, routes: tuple[Route, ...]) -> Costs:
        """A CostModel: the costs of the best partition over the routes that a schedule asks about.

        Who chooses among routes asks about all of them; one that the layers cannot be divided
        over, or whose weights leave no memory to work in, costs more than any other. Raises
        ScheduleError for routes from both ends where a named schedule that goes one way has the
        shortest step.
        """
        if len(routes) > 1 and self._goes_one_way:
            raise ScheduleError("a schedule that goes one way has the shorter step")
        try:
            division = self._led(routes)
        except SpecError:
            return _prohibitive(len(routes[0]))
        if self._budget is not None and not all(division.room_for(*each) for each in enumerate(self._budget.limits)):
            return _prohibitive(len(routes[0]))
        return division.costs

    def _divided(self, routes: tuple[Route, ...]) -> Division:
        return Division(
            profile=self._profile,
            cuts=self._cuts(routes),
            routes=routes,
            schedule=self._spec.schedule,
            tied_bytes=self._spec.model.tied_bytes // self._spec.parallelism.tensor,
            shards=shards(self._spec.parallelism, len(routes)),
            weight_shards=weight_shards(self._spec.parallelism, len(routes)),
            expert=expert_ranks(self._spec.parallelism, len(routes)),
            links=self._links,
        )

    def _cuts(self, routes: tuple[Route, ...]) -> Cuts:
        layers = self._profile.layers
        if self._spec.partition.layers is not None:
            return given_cuts(self._spec.partition.layers, routes[0], num_layers=len(layers))
        seconds = [layer.compute_s for layer in layers]
        memory, limits = self._memory()
        if len(routes) == 1 and len(routes[0]) == self._num_ranks:
            by_stage = list(routes[0])
            return partition(
                seconds,
                len(by_stage),
                speeds=[self._speed(rank) for rank in by_stage],
                memory=memory and [memory[rank] for rank in by_stage],
                memory_limits=limits and [limits[rank] for rank in by_stage],
            )
        speeds = [self._speed(rank) for rank in range(self._num_ranks)]
        return partition_chunks(seconds, routes, speeds=speeds, memory=memory, memory_limits=limits)

    def _memory(self) -> tuple[list[list[float]] | None, list[float] | None]:
        """Return each layer's memory on each rank, and the limits; None where everything fits anyway."""
        budget = self._budget
        if budget is None:
            return None, None
        layers, degrees = self._profile.layers, self._spec.parallelism
        memory = []
        for rank in range(self._num_ranks):
            again = self._share_again(rank)  # of which one micro-batch is held; what was received beside it is small
            held = again + (1 - again) * budget.in_flight[rank]
            further = budget.versions[rank] - 1
            memory.append(
                [
                    layer.state_bytes
                    - layer.moment_bytes * (1 - self._share(layer, shards(degrees)))
                    - layer.parameter_bytes * (1 - self._share(layer, weight_shards(degrees)))
                    + further * layer.parameter_bytes
                    + held * layer.activation_bytes
                    for layer in layers
                ]
            )
        return memory, list(budget.limits)

    def _share(self, layer: LayerCost, shards: int) -> float:
        """Return what a rank has of a layer's state that so many replicas shard."""
        return float(mean_share(layer.expert_share, shards=shards, expert=self._spec.parallelism.expert))

    def _speed(self, rank: int) -> float:
        """Return a rank's speed relative to the profile; one that recomputes runs forward passes twice."""
        speed = self._profile.stage_speeds[rank] if self._profile.stage_speeds else 1.0
        again = self._share_again(rank)
        if not again:
            return speed
        once = sum(layer.compute_s for layer in self._profile.layers)
        return speed * once / (once + again * sum(layer.forward_s for layer in self._profile.layers))

    def _share_again(self, rank: int) -> float:
        """Return the share of a rank's layers that it computes again, if it holds as many as the others."""
        number = self._spec.schedule.recomputed_layers(rank)
        return 1.0 if number is None else min(1.0, number * self._num_ranks / len(self._profile.layers))

    def _bettered(self, choice: Choice) -> Choice:
        """Shorten the step by another partition with the same busiest rank, or by a simpler one."""
        if self._effort == 0 or self._spec.partition.layers is not None or self._profile.concurrency is not None:
            return choice  # on shared processors it is the sum of all work that counts
        limits = self._profile.memory_limits(self._num_ranks)
        partitions = dict.fromkeys((choice.division.cuts, *simple_cuts(choice.division)))
        starts = [choice, *(choice.over(cuts) for cuts in partitions if cuts != choice.division.cuts)]
        ranked = sorted(starts, key=lambda each: each.makespan_s)
        best = next((each for each in ranked if each.fits(limits)), None)
        if best is None:
            return choice
        ordered = best.over(self._ordered(best))
        if ordered.makespan_s < best.makespan_s:
            if ordered.fits(limits):
                return replace(ordered, pressed=best is not ranked[0])
            return replace(best, pressed=True)
        return best if best is ranked[0] else replace(best, pressed=True)

    def _ordered(self, choice: Choice) -> Cuts:
        """Return the partition with the shortest step among those with the same busiest rank, over a few rounds."""
        division, schedule = choice.division, choice.schedule_for(few(self._spec.schedule, self._num_ranks))
        own = np.array([[0, *(end for _, end in division.cuts)]])
        busiest_s = division.busiest_s(own)[0] * _ALIKE

        def seconds(cuts: Cuts) -> float:
            return simulate(schedule, replace(division, cuts=cuts).costs).makespan_s

        return quickest(
            division.cuts,
            seconds,
            allowed=lambda edges: division.busiest_s(edges) <= busiest_s,
            effort=self._effort // sum(map(len, schedule.ranks)),
        )


@lru_cache(maxsize=64)
def _by_sizes(name: ScheduleName, setting: Setting) -> Schedule:
    """Build a schedule that depends on sizes alone; cached, as plans and searches ask for the same again."""
    return build(name, setting)


def _prohibitive(num_stages: int) -> Costs:
    seconds = (1e9,) * num_stages
    return Costs(forward_s=seconds, input_s=seconds, weight_s=seconds)
