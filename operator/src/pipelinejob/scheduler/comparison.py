"""Schedules compared for the same sizes and costs: each one made, simulated, and measured alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pipelinejob.scheduler.catalogue import build
from pipelinejob.scheduler.lower_bound import lower_bound_s
from pipelinejob.schedules.actions import Schedule, ScheduleError
from pipelinejob.schedules.families import FAMILIES, family
from pipelinejob.schedules.memory import live_versions, peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.simulation.result import Simulation
from pipelinejob.simulation.simulate import simulate

# Forwards alone train nothing, so their time compares with no other's.
COMPARABLE = tuple(name for name, family in FAMILIES.items() if family.trains)

_STEADY_FROM = 4  # times the ranks: so many micro-batches on, each further one takes an asynchronous schedule as long

_BOUNDED_CHUNKS = frozenset({None, 1, 2})  # what `lower_bound_s` knows the routes of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One schedule, simulated.

    `caps` bounds each rank's activations, in shares of a micro-batch.
    """

    name: ScheduleName
    simulation: Simulation
    caps: tuple[float, ...] | None = None
    lower_bound_s: float | None = None  # of `auto`: what no schedule on the routes that it searches can be below
    steady_bubble_rate: float | None = None  # of asynchronous ones: between filling and emptying

    @property
    def schedule(self) -> Schedule:
        return self.simulation.schedule

    @cached_property
    def peak_activations(self) -> tuple[float, ...]:
        """The most that each rank keeps for backwards at once, in shares of a micro-batch."""
        if self.schedule.is_forward_only:
            return (0.0,) * self.schedule.num_ranks
        return peak_activations(self.schedule)

    @property
    def over_cap(self) -> int | None:
        """The first rank that holds more than its cap."""
        pairs = zip(self.peak_activations, self.caps or (), strict=bool(self.caps))
        return next((rank for rank, (peak, cap) in enumerate(pairs) if peak > cap), None)

    @cached_property
    def weight_versions(self) -> tuple[int, ...]:
        """Count the weight versions that each rank holds at once, at most."""
        return tuple(map(live_versions, self.schedule.ranks))

    @property
    def weight_copies(self) -> float:
        """The copies of the model's weights in the pipeline: two where micro-batches enter at both ends."""
        schedule = self.schedule
        held = (len({stage for _, stage in schedule.held_by(rank)}) for rank in range(schedule.num_ranks))
        return sum(held) / schedule.num_stages

    @property
    def distance(self) -> float | None:
        """How much longer than the lower bound it takes, as a share of the bound."""
        if self.lower_bound_s is None:
            return None
        return max(0.0, self.simulation.makespan_s / self.lower_bound_s - 1)  # below 0 by rounding alone


def outcome(
    name: ScheduleName, setting: Setting, *, overlap: bool = True, slowdowns: Sequence[float] | None = None
) -> Outcome:
    """Make a schedule and play it, a device for each rank.

    Raises ScheduleError when it does not exist for these sizes. `slowdowns` multiplies each rank's
    times, of which schedules made for the costs know nothing.
    """
    schedule = build(name, setting)
    costs = setting.costs_of(*schedule.routes)
    return Outcome(
        name=name,
        simulation=simulate(schedule, costs, overlap=overlap, slowdowns=slowdowns),
        caps=setting.activation_caps,
        lower_bound_s=_lower_bound_s(setting, schedule, slowdowns) if name is ScheduleName.AUTO else None,
        steady_bubble_rate=(
            _steady_bubble_rate(name, setting, overlap=overlap, slowdowns=slowdowns)
            if schedule.is_asynchronous
            else None
        ),
    )


def compare(
    names: Iterable[ScheduleName],
    setting: Setting,
    *,
    overlap: bool = True,
    slowdowns: Sequence[float] | None = None,
) -> tuple[tuple[Outcome, ...], dict[ScheduleName, str]]:
    """Play each schedule.

    Return those that exist, shortest first and those beyond the caps last, and why others do not.

    What is equally short stands in the order of `names`. A number of chunks is asked only of
    schedules that have a choice, and of `auto` beside its own. Those that look at costs are made
    for the caps; the others are what their papers made them, and judged by the caps.
    """
    found: list[Outcome] = []
    missing: dict[ScheduleName, str] = {}
    for name in names:
        try:
            found.append(_compared(name, setting, overlap=overlap, slowdowns=slowdowns))
        except ScheduleError as error:
            missing[name] = str(error)
    found.sort(key=lambda each: (each.over_cap is not None, round(each.simulation.makespan_s, 9)))
    return tuple(found), missing


def _compared(name: ScheduleName, setting: Setting, *, overlap: bool, slowdowns: Sequence[float] | None) -> Outcome:
    known = family(name)
    asked = replace(
        setting,
        num_chunks=setting.num_chunks if known.chunk_choice else None,
        activation_caps=setting.activation_caps if known.looks_at_costs else None,
    )
    played = replace(outcome(name, asked, overlap=overlap, slowdowns=slowdowns), caps=setting.activation_caps)
    if name is not ScheduleName.AUTO or setting.num_chunks is None:
        return played
    # Asked for chunks, it leaves out all that have none: with its own choice it may be shorter.
    free = outcome(name, replace(asked, num_chunks=None), overlap=overlap, slowdowns=slowdowns)
    best = min(free, played, key=lambda each: each.simulation.makespan_s)
    return replace(
        best,
        lower_bound_s=played.lower_bound_s
        and _lower_bound_s(replace(asked, num_chunks=None), best.schedule, slowdowns),
    )


def _lower_bound_s(setting: Setting, schedule: Schedule, slowdowns: Sequence[float] | None) -> float | None:
    """Return the lower bound of what `auto` searches.

    None where routes or costs differ from those simulated.

    Schedules that hold each stage twice count only where `auto` came to one.
    """
    if slowdowns or setting.num_chunks not in _BOUNDED_CHUNKS:
        return None
    return lower_bound_s(setting, copies=len(schedule.routes))


def _steady_bubble_rate(
    name: ScheduleName, setting: Setting, *, overlap: bool, slowdowns: Sequence[float] | None
) -> float:
    """Return the bubble rate between filling and emptying, from the difference of two long steps."""
    interval = setting.update_interval or setting.num_ranks
    short = interval * -(-_STEADY_FROM * setting.num_ranks // interval)

    def played(num_micro_batches: int) -> Simulation:
        schedule = build(name, replace(setting, num_micro_batches=num_micro_batches))
        return simulate(schedule, setting.costs_of(*schedule.routes), overlap=overlap, slowdowns=slowdowns)

    before, after = played(short), played(2 * short)
    compute_s = (sum(after.compute_s) - sum(before.compute_s)) / setting.num_ranks
    return 1 - compute_s / (after.makespan_s - before.makespan_s)
