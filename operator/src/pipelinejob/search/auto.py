"""Searches schedules for the best configurations that were planned with named ones.

To order a step's actions takes long, and the longer the more of them there are, so that few
configurations get a schedule of their own: the best of each layout, as long as their sizes, added
up, are within a bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelinejob.base.errors import SpecError
from pipelinejob.search.found import READABLE, Candidate, schedule_title
from pipelinejob.search.reasons import Rejected, seconds_text
from pipelinejob.search.space import Layout
from pipelinejob.spec.schedules.schedule import ScheduleSpec

ACTIONS = 160  # that are planned and simulated in the time in which one forward, and what comes of it, is ordered
_MOST = 4
_USUAL_CHUNKS = 2  # of the longest routes that a schedule is searched on where no number of stretches is given
_ALIKE = 1 - 1e-9
_ANYHOW = "fix degrees and micro-batches beside auto to have it made all the same"

Make = Callable[[Layout, Candidate | None, int | None], Candidate]


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The result: candidates with searched schedules, and why others have none."""

    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    num_made: int = 0


def search_schedules(
    asked: ScheduleSpec, ranked: Sequence[Candidate], unfit: Sequence[Layout], make: Make, *, effort: int
) -> Searched:
    """Search a schedule for the best candidate of each layout, from the best one on.

    Where there are no candidates, it is searched for the first layouts that no named schedule
    fits. `make` plans a layout, or its candidate again, with a schedule that is searched on routes
    of so many chunks a stage; `effort` is that of the whole search.
    """
    most = remaining = effort // ACTIONS
    made: list[Candidate] = []
    rejected: list[Rejected] = []
    num_made = 0
    trials = [(each.layout, each) for each in leaders(ranked)] if ranked else [(each, None) for each in unfit]
    for layout, leader in trials[:_MOST]:
        chunks = _chunks(asked, leader)
        size = num_forwards(layout, chunks)
        reason = _cannot_win(leader, ranked[0]) if leader else None
        reason = reason or _too_large(size, remaining, most)
        if reason is None:
            remaining, num_made = remaining - size, num_made + 1
            try:
                candidate = make(layout, leader, chunks)
            except SpecError as error:
                reason = error.problem
            else:
                reason = _no_gain(candidate, leader) if leader else None
                made += [candidate] if reason is None else []
        if reason is not None:
            rejected.append(Rejected(what=_what(layout), why=reason))
    return Searched(candidates=tuple(made), rejected=tuple(rejected), num_made=num_made)


def leaders(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Return the first candidate of each layout whose stages have something to wait for."""
    firsts: dict[Layout, Candidate] = {}
    for each in ranked:
        if each.layout.pipeline > 1:
            firsts.setdefault(each.layout, each)
    return list(firsts.values())


def num_forwards(layout: Layout, chunks: int | None) -> int:
    """Count the forwards that a schedule would order, on the longest routes that it may take."""
    return layout.pipeline * (chunks or _USUAL_CHUNKS) * layout.micro_batches


def _chunks(asked: ScheduleSpec, leader: Candidate | None) -> int | None:
    """Return the stretches that a manifest asks for.

    Else as many as the best named schedule has, if they are many.
    """
    if asked.virtual_stages is not None:
        return asked.virtual_stages
    own = (leader and leader.chosen.virtual_stages) or 1
    return own if own > _USUAL_CHUNKS else None


def _cannot_win(leader: Candidate, best: Candidate) -> str | None:
    if leader.floor_s < best.step_s * (1 - READABLE):
        return None
    own, its = seconds_text(leader.floor_s), seconds_text(best.step_s)
    return f"at best {own} a step, the best found under a name takes {its}"


def _too_large(size: int, remaining: int, most: int) -> str | None:
    """Return the reason for which no schedule is searched for; None if one is."""
    if size > most:
        return (
            f"not searched for: it would order {size:,} forwards, and a search of configurations takes on {most:,} at"
            f" most; {_ANYHOW}"
        )
    if size > remaining:
        return (
            f"not searched for: it would order {size:,} forwards, and of the {most:,} that a search of configurations"
            f" takes on, better ones left {remaining:,}; {_ANYHOW}"
        )
    return None


def _no_gain(candidate: Candidate, leader: Candidate) -> str | None:
    """Return why a searched schedule is not worth taking; None if it is."""
    if candidate.step_s < leader.step_s * (1 - READABLE):
        return None
    own, name, its = seconds_text(candidate.step_s), schedule_title(leader.chosen), seconds_text(leader.step_s)
    if candidate.step_s < leader.step_s * _ALIKE:
        return f"{own} a step, less than {READABLE:.1%} shorter than {name}, which can be read off its name"
    if candidate.step_s <= leader.step_s / _ALIKE:
        return f"nothing was found that is shorter than {name}, which takes {its} a step"
    return f"{own} a step, {name} takes {its}"


def _what(layout: Layout) -> str:
    return f"auto with {layout.pipeline} stages, micro-batches of {layout.micro_batch_size}"
