"""Where a search has schedules made that follow from no name: for the best of what was planned under named ones.

To order a step's actions takes long, and the longer the more of them there are, so that few configurations get a
schedule of their own: the best of each layout, as long as their sizes, added up, are within a bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelinejob.errors import SpecError
from pipelinejob.schedule_spec import ScheduleSpec
from pipelinejob.search.found import READABLE, Candidate, schedule_title
from pipelinejob.search.reasons import Rejected, seconds_text
from pipelinejob.search.space import Layout

ACTIONS = 160  # that are planned and simulated in the time in which one forward, and what comes of it, is ordered
_MOST = 4
_USUAL_CHUNKS = 2  # of the longest routes that a schedule is searched on where no number of stretches is given
_ALIKE = 1 - 1e-9
_ANYHOW = "fix degrees and micro-batches beside auto to have it made all the same"

Make = Callable[[Layout, Candidate | None, int | None], Candidate]


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What came of it."""

    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    num_made: int = 0


def search_schedules(
    asked: ScheduleSpec, ranked: Sequence[Candidate], unfit: Sequence[Layout], make: Make, *, effort: int
) -> Searched:
    """Have a schedule made for the best candidate of each layout, from the best one on, and say what became of each.

    Where there are none, one is made for the first layouts that no named schedule is fit for. `make` plans a layout,
    or its candidate again, with a schedule that is searched on routes of so many stretches a stage; `effort` is that of
    the whole search.
    """
    most = left = effort // ACTIONS
    made: list[Candidate] = []
    rejected: list[Rejected] = []
    num_made = 0
    trials = [(each.layout, each) for each in leaders(ranked)] if ranked else [(each, None) for each in unfit]
    for layout, leader in trials[:_MOST]:
        chunks = _chunks(asked, leader)
        size = num_forwards(layout, chunks)
        why = _cannot_win(leader, ranked[0]) if leader else None
        why = why or _too_large(size, left, most)
        if why is None:
            left, num_made = left - size, num_made + 1
            try:
                candidate = make(layout, leader, chunks)
            except SpecError as error:
                why = error.problem
            else:
                why = _no_gain(candidate, leader) if leader else None
                made += [candidate] if why is None else []
        if why is not None:
            rejected.append(Rejected(what=_what(layout), why=why))
    return Searched(candidates=tuple(made), rejected=tuple(rejected), num_made=num_made)


def leaders(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Give the first candidate of each layout whose stages have something to wait for."""
    firsts: dict[Layout, Candidate] = {}
    for each in ranked:
        if each.layout.pipeline > 1:
            firsts.setdefault(each.layout, each)
    return list(firsts.values())


def num_forwards(layout: Layout, chunks: int | None) -> int:
    """Count the forwards that a schedule would order, on the longest routes that it may take."""
    return layout.pipeline * (chunks or _USUAL_CHUNKS) * layout.micro_batches


def _chunks(asked: ScheduleSpec, leader: Candidate | None) -> int | None:
    """Give the stretches that a manifest asks for; else as many as the best named schedule has, if they are many."""
    if asked.virtual_stages is not None:
        return asked.virtual_stages
    own = (leader and leader.chosen.virtual_stages) or 1
    return own if own > _USUAL_CHUNKS else None


def _cannot_win(leader: Candidate, best: Candidate) -> str | None:
    if leader.floor_s < best.step_s * (1 - READABLE):
        return None
    own, its = seconds_text(leader.floor_s), seconds_text(best.step_s)
    return f"at best {own} a step, the best found under a name takes {its}"


def _too_large(size: int, left: int, most: int) -> str | None:
    """Give the reason for which no schedule is searched for; None if one is."""
    if size > most:
        return (
            f"not searched for: it would order {size:,} forwards, and a search of configurations takes on {most:,} at"
            f" most; {_ANYHOW}"
        )
    if size > left:
        return (
            f"not searched for: it would order {size:,} forwards, and of the {most:,} that a search of configurations"
            f" takes on, better ones left {left:,}; {_ANYHOW}"
        )
    return None


def _no_gain(candidate: Candidate, leader: Candidate) -> str | None:
    """Say what a schedule lacks that is not worth its being searched for."""
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
