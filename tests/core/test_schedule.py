"""Schedules as data: what they print, that they can be played, what they hold in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.schedule import (
    Action,
    ActionKind,
    ScheduleError,
    build,
    held_micro_batches,
    parse,
    peak_in_flight,
    render,
    stage_actions,
    validate,
    wait_causes,
)
from pipelinejob.spec import ScheduleName

names = st.sampled_from(ScheduleName)
few = st.integers(1, 12)


def test_gpipe_runs_all_forwards_then_all_backwards():
    assert render(build(ScheduleName.GPIPE, 2, 3)) == "F0 F1 F2 B0 B1 B2\nF0 F1 F2 B0 B1 B2"


def test_1f1b_alternates_once_each_stage_is_warm():
    assert render(build(ScheduleName.ONE_F_ONE_B, 4, 5)).splitlines() == [
        "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4",
        "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
        "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4",
        "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4",
    ]


def test_1f1b_with_fewer_micro_batches_than_stages_never_alternates_at_first():
    assert render(build(ScheduleName.ONE_F_ONE_B, 4, 2)).splitlines() == [
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 B0 F1 B1",
    ]


@given(name=names, num_stages=few, num_micro_batches=few)
def test_every_schedule_can_be_played(name, num_stages, num_micro_batches):
    schedule = build(name, num_stages, num_micro_batches)

    validate(schedule)
    assert len(schedule) == num_stages
    assert all(len(actions) == 2 * num_micro_batches for actions in schedule)


@given(name=names, num_stages=few, num_micro_batches=few)
def test_a_schedule_reads_back_what_it_printed(name, num_stages, num_micro_batches):
    schedule = build(name, num_stages, num_micro_batches)

    assert parse(render(schedule)) == schedule


@given(p=few, m=few)
def test_a_stage_of_1f1b_holds_no_more_micro_batches_than_stages_from_it_on(p, m):
    held = [peak_in_flight(actions) for actions in build(ScheduleName.ONE_F_ONE_B, p, m)]

    assert held == [min(m, p - i) for i in range(p)]


@given(name=names, p=few, m=few)
def test_what_a_stage_holds_is_known_without_its_actions(name, p, m):
    held = [held_micro_batches(name, stage, p, m) for stage in range(p)]

    assert held == [peak_in_flight(actions) for actions in build(name, p, m)]


@given(p=few, m=few)
def test_gpipe_holds_every_micro_batch_on_every_stage(p, m):
    assert [peak_in_flight(actions) for actions in build(ScheduleName.GPIPE, p, m)] == [m] * p


@given(name=names, p=few, m=few, data=st.data())
def test_one_rank_can_ask_for_its_own_actions_alone(name, p, m, data):
    stage = data.draw(st.integers(0, p - 1))

    assert stage_actions(name, stage, p, m) == build(name, p, m)[stage]


def test_an_action_prints_as_it_parses():
    assert Action.parse("F3") == Action(ActionKind.FORWARD, 3)
    assert str(Action(ActionKind.BACKWARD, 12)) == "B12"


@pytest.mark.parametrize("text", ["", "F", "3", "X3", "F-1", "F1.5", "f3", "F٣"])
def test_what_is_no_action_is_refused(text):
    with pytest.raises(ScheduleError, match="write F or B and the number of a micro-batch"):
        Action.parse(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("F0 B0 B0", "stage 0 runs B0 2 times; it must run it once"),
        ("F0 F1 B0", "stage 0 runs B1 0 times; it must run it once"),
        ("F0 B0\nF1 B1", "stage 0 runs F1 0 times; it must run it once"),
        ("B0 F0", "stage 0 waits for ever before B0: it needs F0 of stage 0, which never ends"),
        ("F0 F1 B0 B1\nF1 B1 B0 F0", "stage 0 waits for ever before B0: it needs B0 of stage 1, which never ends"),
        ("F0 B0 F1 B1\nF0 F1 B0 B1", "stage 0 waits for ever before B0: it needs B0 of stage 1, which never ends"),
    ],
)
def test_what_cannot_be_played_is_refused_with_stage_and_action(text, problem):
    with pytest.raises(ScheduleError) as error:
        validate(parse(text))

    assert str(error.value) == problem


def test_waits_are_named_by_what_the_stage_still_has_to_do():
    actions = stage_actions(ScheduleName.ONE_F_ONE_B, 1, 3, 4)

    assert [f"{a} {cause}" for a, cause in zip(actions, wait_causes(actions), strict=True)] == [
        "F0 warm-up",
        "F1 warm-up",
        "B0 warm-up",
        "F2 upstream",
        "B1 downstream",
        "F3 upstream",
        "B2 drain",
        "B3 drain",
    ]
