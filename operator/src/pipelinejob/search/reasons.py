"""Why options were not chosen, gathered into one sentence for each kind of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from pipelinejob.chosen import Chosen
from pipelinejob.errors import SpecError
from pipelinejob.pool import Pool
from pipelinejob.search.space import Layout, Option


class Planned(Protocol):
    """What was planned."""

    @property
    def chosen(self) -> Chosen: ...
    @property
    def step_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """What was left out, and why, in a sentence."""

    what: str
    why: str


class Tally:
    """Counts what was left out: by number of stages, and by schedule for the degrees that were chosen."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._too_large: dict[int, tuple[float, float]] = {}  # stages -> least bytes of a stage, of its device
        self._floors_s: dict[int, float] = {}  # stages -> the least bound
        self._failed: dict[int, SpecError] = {}
        self._options: list[tuple[Option, float | SpecError]] = []

    def too_large(self, what: Layout | Option, needed: float, limit: float) -> None:
        """Note what does not go into memory: what a stage needs in the mean, and has."""
        pipeline = _layout(what).pipeline
        self._too_large[pipeline] = min((needed, limit), self._too_large.get(pipeline, (needed, limit)))

    def too_slow(self, what: Layout | Option, floor_s: float) -> None:
        """Note what cannot be quicker than the best found."""
        pipeline = _layout(what).pipeline
        self._floors_s[pipeline] = min(floor_s, self._floors_s.get(pipeline, floor_s))
        if isinstance(what, Option):
            self._options.append((what, floor_s))

    def failed(self, option: Option, error: SpecError) -> None:
        """Note what could not be planned."""
        self._failed.setdefault(option.layout.pipeline, error)
        self._options.append((option, error))

    def rejected(self, ranked: Sequence[Planned]) -> tuple[Rejected, ...]:
        """Give the sentences, once all is counted; `ranked` is what was planned, the best first."""
        return (*self._by_stages(ranked), *self._by_schedule(ranked))

    def _by_stages(self, ranked: Sequence[Planned]) -> list[Rejected]:
        best_s = ranked[0].step_s if ranked else None
        planned = {each.chosen.pipeline for each in ranked}
        whys = {}
        for pipeline in sorted({*self._too_large, *self._floors_s, *self._failed} - planned):
            whys[pipeline] = self._why(pipeline, best_s)
        kinds: dict[str, list[int]] = {}
        for pipeline, (kind, _, _) in whys.items():
            kinds.setdefault(kind, []).append(pipeline)
        return [
            Rejected(what=f"pipeline {ranges_text(stages)}", why=min(whys[each][1:] for each in stages)[1])
            for stages in kinds.values()
        ]

    def _why(self, pipeline: int, best_s: float | None) -> tuple[str, float, str]:
        """Give the kind of the reason, how far it is from being none, and the sentence."""
        if pipeline in self._floors_s and best_s is not None:
            floor_s = self._floors_s[pipeline]
            return "left" if floor_s < best_s else "slow", floor_s, _why(floor_s, best_s)
        if pipeline in self._failed:
            return "failed", 0.0, self._failed[pipeline].problem
        needed, limit = self._too_large[pipeline]
        return "large", needed, f"a stage would take {needed / 1e9:,.0f} GB of {limit / 1e9:,.0f} GB"

    def _by_schedule(self, ranked: Sequence[Planned]) -> list[Rejected]:
        """Give why the chosen degrees are not played by other schedules."""
        if not ranked:
            return []
        best = ranked[0]
        degrees = _degrees(best.chosen)
        played = {each.chosen.schedule for each in ranked if _degrees(each.chosen) == degrees}
        reasons: dict[str, float | SpecError] = {}
        for option, why in self._options:
            layout = option.layout
            if (layout.pipeline, layout.data, layout.tensor) != degrees or option.schedule in played:
                continue
            known = reasons.get(option.schedule)
            if known is None or (isinstance(why, float) and (isinstance(known, SpecError) or why < known)):
                reasons[option.schedule] = why
        return [
            Rejected(what=f"{name} with {best.chosen.pipeline} stages", why=_why(why, best.step_s))
            for name, why in reasons.items()
        ]


def _why(why: float | SpecError, best_s: float) -> str:
    if isinstance(why, SpecError):
        return why.problem
    if why < best_s:
        return f"not looked at, as other options promised more; at best {seconds_text(why)} a step"
    return f"at best {seconds_text(why)} a step, the best found takes {seconds_text(best_s)}"


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
