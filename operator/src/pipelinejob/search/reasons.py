"""Why options were not chosen, gathered into one sentence for each kind of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from pipelinejob.base.errors import SpecError
from pipelinejob.fabric.pool import Pool
from pipelinejob.search.space import Layout, Option
from pipelinejob.spec.chosen import Chosen


class Planned(Protocol):
    """A configuration that was planned."""

    @property
    def chosen(self) -> Chosen: ...
    @property
    def step_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An option that was left out, and the reason in a sentence."""

    what: str
    why: str


class Tally:
    """Collects the options left out: by number of stages, and by schedule for the degrees that were chosen."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._too_large: dict[int, tuple[float, float]] = {}  # stages -> least bytes of a stage, of its device
        self._floors_s: dict[int, float] = {}  # stages -> the least bound
        self._failed: dict[int, SpecError] = {}
        self._options: list[tuple[Option, float | SpecError]] = []

    def too_large(self, what: Layout | Option, needed: float, limit: float) -> None:
        """Record an option that exceeds memory: the mean bytes that a stage needs, and those that it has."""
        pipeline = _layout(what).pipeline
        self._too_large[pipeline] = min((needed, limit), self._too_large.get(pipeline, (needed, limit)))

    def too_slow(self, what: Layout | Option, floor_s: float) -> None:
        """Record an option whose lower bound is no better than the best found."""
        pipeline = _layout(what).pipeline
        self._floors_s[pipeline] = min(floor_s, self._floors_s.get(pipeline, floor_s))
        if isinstance(what, Option):
            self._options.append((what, floor_s))

    def failed(self, option: Option, error: SpecError) -> None:
        """Record an option that could not be planned."""
        self._failed.setdefault(option.layout.pipeline, error)
        self._options.append((option, error))

    def rejected(self, ranked: Sequence[Planned]) -> tuple[Rejected, ...]:
        """Return the reasons, one for each kind; `ranked` is what was planned, the best first."""
        return (*self._by_stages(ranked), *self._by_schedule(ranked))

    def _by_stages(self, ranked: Sequence[Planned]) -> list[Rejected]:
        best_s = ranked[0].step_s if ranked else None
        planned = {each.chosen.pipeline for each in ranked}
        reasons = {}
        for pipeline in sorted({*self._too_large, *self._floors_s, *self._failed} - planned):
            reasons[pipeline] = self._reason(pipeline, best_s)
        kinds: dict[str, list[int]] = {}
        for pipeline, (kind, _, _) in reasons.items():
            kinds.setdefault(kind, []).append(pipeline)
        return [
            Rejected(what=f"pipeline {ranges_text(stages)}", why=min(reasons[each][1:] for each in stages)[1])
            for stages in kinds.values()
        ]

    def _reason(self, pipeline: int, best_s: float | None) -> tuple[str, float, str]:
        """Return the kind of the reason, its size (the least is told of several), and the sentence."""
        if pipeline in self._floors_s and best_s is not None:
            floor_s = self._floors_s[pipeline]
            return "unexplored" if floor_s < best_s else "slow", floor_s, _sentence(floor_s, best_s)
        if pipeline in self._failed:
            return "failed", 0.0, self._failed[pipeline].problem
        needed, limit = self._too_large[pipeline]
        return "large", needed, f"a stage would take {needed / 1e9:,.0f} GB of {limit / 1e9:,.0f} GB"

    def _by_schedule(self, ranked: Sequence[Planned]) -> list[Rejected]:
        """Return why other schedules are not used at the chosen degrees."""
        if not ranked:
            return []
        best = ranked[0]
        degrees = _degrees(best.chosen)
        played = {each.chosen.schedule for each in ranked if _degrees(each.chosen) == degrees}
        reasons: dict[str, float | SpecError] = {}
        for option, reason in self._options:
            layout = option.layout
            if (layout.pipeline, layout.data, layout.tensor) != degrees or option.schedule in played:
                continue
            known = reasons.get(option.schedule)
            if known is None or (isinstance(reason, float) and (isinstance(known, SpecError) or reason < known)):
                reasons[option.schedule] = reason
        return [
            Rejected(what=f"{name} with {best.chosen.pipeline} stages", why=_sentence(reason, best.step_s))
            for name, reason in reasons.items()
        ]


def _sentence(reason: float | SpecError, best_s: float) -> str:
    """Write a reason: an error's problem, or the lower bound of the step compared with the best."""
    if isinstance(reason, SpecError):
        return reason.problem
    if reason < best_s:
        return f"not looked at, as other options promised more; at best {seconds_text(reason)} a step"
    return f"at best {seconds_text(reason)} a step, the best found takes {seconds_text(best_s)}"


def ranges_text(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: `1 to 4, 6`."""
    runs = (list(run) for _, run in groupby(enumerate(numbers), key=lambda each: each[1] - each[0]))
    ends = ((run[0][1], run[-1][1]) for run in runs)
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ends)


def _layout(what: Layout | Option) -> Layout:
    return what if isinstance(what, Layout) else what.layout


def _degrees(chosen: Chosen) -> tuple[int, int, int]:
    return chosen.pipeline, chosen.data, chosen.tensor


def seconds_text(seconds: float) -> str:
    """Write seconds to three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
