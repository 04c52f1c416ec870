"""Which cases are tried: models of people's habits, times schedules, splits, replicas, stops, and the rest."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import strategies as st

from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Precision
from zoo.case import Case, Leg
from zoo.model import BETWEEN, FIRST, LAST, LAZY, NESTED, bare

SYNCHRONOUS = tuple(
    name for name in catalogue.FAMILIES if name not in ASYNCHRONOUS | {ScheduleName.FORWARD_ONLY, ScheduleName.AUTO}
)
TWO_WAYS = frozenset({ScheduleName.DUALPIPE, ScheduleName.CHIMERA})  # which need an even number of ranks
NEVER_LAZY = {"borrowing", "peeking"}  # what a function's layer hides is not seen, see docs/limits.md
MAX_BETWEEN = 5
MAX_STEPS = 4
MAX_MICRO_BATCHES = 6


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a case. A stop may be followed by any other split and batch; updates stay within the step, or at its end."""
    habits = draw(_habits())
    is_asynchronous = draw(st.integers(0, 4)) == 0
    steps = draw(st.integers(2, MAX_STEPS))
    stop = draw(st.none() | st.integers(1, steps - 1))
    legs = [draw(_leg(len(habits), is_asynchronous, until=stop or steps))]
    if stop and is_asynchronous:
        legs.append(draw(_same_updates(legs[0], len(habits), until=steps)))
    elif stop:
        legs.append(draw(_leg(len(habits), False, until=steps)))
    is_masked = draw(st.integers(0, 3)) == 0
    case = Case(
        habits=habits,
        legs=tuple(legs),
        sequence_length=draw(st.sampled_from([4, 7])),
        precision=draw(st.sampled_from([Precision.FP32, Precision.FP32, Precision.BF16])),
        clip_norm=draw(st.sampled_from([0.0, 0.3])),
        preflight=draw(st.booleans()),
        evaluates=draw(st.booleans()) and not is_masked,  # so few sequences may count nothing
        is_masked=is_masked,
        seed=draw(st.integers(0, 3)),
    )
    return _nested(case) if draw(st.integers(0, 3)) == 0 else case


def _nested(case: Case) -> Case:
    first, *others = case.habits
    word = bare(first) + NESTED + (LAZY if first.endswith(LAZY) else "")
    return replace(case, habits=(word, *others))


@st.composite
def _habits(draw: st.DrawFn) -> tuple[str, ...]:
    """Draw a model: a first layer, a few between of which some come again, and a last one."""
    between = draw(st.lists(_word(BETWEEN), min_size=1, max_size=MAX_BETWEEN - 1))
    again = draw(st.none() | st.sampled_from(between))
    return (draw(_word(FIRST)), *between, *([again] if again else []), draw(_word(LAST)))


def _word(habits: dict[str, object]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda name, is_lazy: name + LAZY if is_lazy and name not in NEVER_LAZY else name,
        st.sampled_from(sorted(habits)),
        st.integers(0, 7).map(lambda dice: dice == 7),
    )


@st.composite
def _leg(draw: st.DrawFn, num_layers: int, is_asynchronous: bool, *, until: int) -> Leg:
    names = sorted(ASYNCHRONOUS) if is_asynchronous else SYNCHRONOUS
    micro_batches = draw(st.integers(1, MAX_MICRO_BATCHES))
    schedule, ranks = draw(st.sampled_from(_seats(names, num_layers, micro_batches)))
    size = draw(st.integers(1, 3))
    return Leg(
        until=until,
        schedule=schedule,
        ranks=ranks,
        cuts=draw(_cuts(num_layers, num_stages(schedule, ranks))),
        replicas=draw(st.sampled_from([1, 1, 2])),
        micro_batches=micro_batches,
        micro_batch_size=size,
        is_last_smaller=size > 1 and not is_asynchronous and draw(st.booleans()),
        **draw(_recomputing(ranks)),
    )


@st.composite
def _same_updates(draw: st.DrawFn, before: Leg, num_layers: int, *, until: int) -> Leg:
    """Draw how a run goes on that updates within the step: by as many updates of as many micro-batches."""
    is_free = before.schedule is ScheduleName.PIPEDREAM  # the other gathers as many micro-batches as there are ranks
    ranks = draw(st.integers(1, min(4, num_layers))) if is_free else before.ranks
    return replace(
        before,
        until=until,
        ranks=ranks,
        cuts=draw(_cuts(num_layers, ranks)),
        replicas=draw(st.sampled_from([1, 1, 2])),
        **draw(_recomputing(ranks)),
    )


def _cuts(num_layers: int, num_stages: int) -> st.SearchStrategy[tuple[int, ...]]:
    ends = st.sets(st.integers(1, num_layers - 1), min_size=num_stages - 1, max_size=num_stages - 1)
    return ends.map(lambda chosen: tuple(end - first for first, end in pairwise((0, *sorted(chosen), num_layers))))


def _recomputing(ranks: int) -> st.SearchStrategy[dict[str, tuple[int, ...] | None]]:
    whole = st.sets(st.integers(0, ranks - 1)).map(lambda chosen: tuple(sorted(chosen)))
    again = st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks).map(tuple)
    return (
        st.just({"recompute": (), "again": None})
        | whole.map(lambda chosen: {"recompute": chosen, "again": None})
        | again.map(lambda layers: {"recompute": (), "again": layers})
    )


def _seats(names: Sequence[ScheduleName], num_layers: int, micro_batches: int) -> list[tuple[ScheduleName, int]]:
    """Return schedules with numbers of ranks that exist for so many layers and micro-batches."""
    return [
        (name, ranks)
        for name in names
        for ranks in (1, 2, 3, 4)
        if num_stages(name, ranks) <= num_layers
        and not (name in TWO_WAYS and ranks % 2)
        and not (name is ScheduleName.PIPEDREAM_2BW and micro_batches < ranks)
    ]


def num_stages(name: ScheduleName, ranks: int) -> int:
    """Count the stages of a route."""
    return ranks * catalogue.FAMILIES[name].usual_chunks
