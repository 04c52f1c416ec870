"""Other people's layers train as plain torch trains them, however they are split, or are refused by name.

Here every habit by itself, and fifty models of several, always the same ones. `make zoo` tries
2,000, these among them.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, seed, settings

from pipelinejob.schedules.names import ScheduleName
from zoo.case import Case, Leg
from zoo.cases import cases
from zoo.model import BETWEEN, FIRST, LAST, NESTED
from zoo.verdict import Verdict, judge

# A user's layer may make torch warn; that is between the two.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HABITS = [
    *((name, "half", "half", "head") for name in FIRST),
    *(("shared-embedding", name, name, "head") for name in BETWEEN),
    *(("shared-embedding", "half", "half", name) for name in LAST),
]
HALVES = Leg(until=2, schedule=ScheduleName.ZB_H1, ranks=2, cuts=(2, 2), replicas=1, micro_batches=4, again=(2, 1))
BOTH_WAYS = Leg(until=3, schedule=ScheduleName.CHIMERA, ranks=2, cuts=(1, 3), replicas=2, micro_batches=2)
PIPEDREAM = Leg(until=2, schedule=ScheduleName.PIPEDREAM, ranks=2, cuts=(2, 2), replicas=1, micro_batches=3)


@pytest.mark.parametrize("habits", HABITS, ids=" ".join)
def test_a_habit_trains_in_halves_and_goes_on_both_ways_in_replicas(text: Path, habits: tuple[str, ...]) -> None:
    assert_right(Case(habits=habits, legs=(HALVES, BOTH_WAYS), evaluates=True), text)


@pytest.mark.parametrize("habits", HABITS[::4], ids=" ".join)
@pytest.mark.parametrize("legs", [(HALVES, BOTH_WAYS), (PIPEDREAM,)], ids=["synchronously", "asynchronously"])
def test_a_habit_trains_on_what_counts(text: Path, habits: tuple[str, ...], legs: tuple[Leg, ...]) -> None:
    assert_right(Case(habits=habits, legs=legs, evaluates=True, is_masked=True), text)


@pytest.mark.parametrize("habits", HABITS, ids=" ".join)
def test_a_habit_trains_asynchronously(text: Path, habits: tuple[str, ...]) -> None:
    assert_right(Case(habits=habits, legs=(PIPEDREAM,), preflight=True), text)


@pytest.mark.parametrize("habits", HABITS, ids=" ".join)
def test_a_habit_trains_inside_of_a_nesting(text: Path, habits: tuple[str, ...]) -> None:
    first, *others = habits
    assert_right(Case(habits=(first + NESTED, *others), legs=(HALVES, BOTH_WAYS), evaluates=True), text)


def test_a_rank_that_begins_with_an_fft_trains_bit_for_bit(text: Path) -> None:
    leg = Leg(until=2, schedule=ScheduleName.ONE_F_ONE_B, ranks=2, cuts=(1, 2), replicas=1, micro_batches=1)
    case = Case(habits=("embedding", "spectral", "head"), legs=(leg,))

    assert case.is_exact
    assert_right(case, text)


@pytest.mark.parametrize("batch", range(40 if settings.get_current_profile_name() == "zoo" else 1))
def test_fifty_models_of_several_habits_train_as_plain_torch_does_or_are_refused(text: Path, batch: int) -> None:
    @seed(batch)
    @settings(max_examples=50, database=None)
    @given(case=cases())
    def holds(case: Case) -> None:
        assert_right(case, text)

    holds()


def assert_right(case: Case, text: Path) -> None:
    with TemporaryDirectory() as folder:
        verdict = judge(case, text, Path(folder))

    assert verdict == Verdict(refusal=verdict.refusal)
