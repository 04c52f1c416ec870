"""What terminal and page show of one schedule. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from pipelinejob.scheduler.comparison import Outcome
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.simulation.result import Simulation
from pipelinejob_operator.report.marks import Row, row
from pipelinejob_operator.report.numbers import percent, plain


@dataclass(frozen=True, kw_only=True)
class ScheduleView:
    """A schedule, played, and what is known of it."""

    outcome: Outcome
    title: str
    source: str

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One row for each rank, as pages and terminals draw it; times in the costs' own unit."""
        return rows_of(self.outcome.simulation)

    @property
    def sizes(self) -> str:
        """The numbers of ranks, micro-batches, chunks and directions."""
        schedule = self.outcome.schedule
        chunks = len(schedule.stages_of[0][0])
        parts = [
            _counted(schedule.num_ranks, "rank"),
            _counted(schedule.num_micro_batches, "micro-batch", "micro-batches"),
            *([f"{chunks} chunks on each"] if chunks > 1 else []),
            *([f"{len(schedule.routes)} directions"] if len(schedule.routes) > 1 else []),
        ]
        return ", ".join(parts)

    @property
    def times(self) -> str:
        """How long it takes, and which share of that is bubble."""
        simulation = self.outcome.simulation
        ideal = sum(simulation.compute_s) / len(simulation.compute_s)
        by_span = percent(simulation.span_bubble_rate)
        bubble = percent(simulation.bubble_rate)
        aside = f", {by_span} by the longest span of a rank" if by_span != bubble else ""
        return f"makespan {plain(simulation.makespan_s)}, ideal {plain(ideal)}: bubble {bubble}{aside}"

    @property
    def memory(self) -> str:
        """What each rank holds at most."""
        outcome = self.outcome
        if outcome.schedule.is_forward_only:
            return "no activations are kept, as there are no backwards"
        parts = [f"peak activations {ranks_line(outcome.peak_activations)}"]
        if max(outcome.weight_versions) > 1:
            parts.append(f"weight versions {ranks_line(outcome.weight_versions)}")
        if outcome.weight_copies > 1:
            parts.append(f"weights held {outcome.weight_copies:g} times")
        if outcome.over_cap is not None and outcome.caps is not None:
            parts.append(f"over the cap of {outcome.caps[outcome.over_cap]:g} on rank {outcome.over_cap}")
        return "; ".join(parts)

    @property
    def facts(self) -> tuple[str, ...]:
        """All that is known of it, in lines."""
        steady = self.outcome.steady_bubble_rate
        more = (
            ()
            if steady is None
            else (
                f"asynchronous: the bubble is that of one step of filling and emptying; in between {percent(steady)}",
            )
        )
        distance = self.outcome.distance
        if distance is not None:
            more = (*more, f"at most {percent(distance)} longer than the least on the routes it searches")
        return (self.sizes, self.times, self.memory, *more)


def rows_of(simulation: Simulation) -> tuple[Row, ...]:
    """Return a row for each rank, times in the costs' own unit."""
    ranks = simulation.timeline.stages
    return tuple(row(rank, f"rank {rank.stage}", write=plain, schedule=simulation.schedule) for rank in ranks)


def ranks_line(values: Iterable[float]) -> str:
    """Write one number for each rank; neighbours with the same number are written together."""
    runs = [(value, len(list(run))) for value, run in groupby(values)]
    if len(runs) == 1:
        return f"{runs[0][0]:g} on each rank"
    return " ".join(f"{value:g}" if count == 1 else f"{count}x{value:g}" for value, count in runs)


def by_rank(simulation: Simulation) -> dict[str, list[float]]:
    """Return each rank's idle time by cause."""
    return {cause.value: [idle[cause] for idle in simulation.idle_s] for cause in WaitCause}


def idle_shares(simulation: Simulation) -> list[tuple[str, float]]:
    """Return the causes of idle time, with mean shares of the makespan, largest first."""
    whole = simulation.makespan_s * simulation.schedule.num_ranks
    shares = [(cause, sum(seconds) / whole) for cause, seconds in by_rank(simulation).items()]
    return sorted((each for each in shares if each[1] > 1e-9), key=lambda each: -each[1])  # noqa: PLR2004  # rounding


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
