"""Schedules as data: what they print, that they can be played, what they hold in memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.scheduler.catalogue import FAMILIES, build
from pipelinejob.schedules.actions import (
    Action,
    ActionKind,
    F,
    Held,
    I,
    Schedule,
    ScheduleError,
    folded,
    looped,
    one_route,
)
from pipelinejob.schedules.causes import wait_causes
from pipelinejob.schedules.memory import live_versions, peak_activations, peak_in_flight
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse, parse_action, render
from pipelinejob.schedules.validate import validate

few = st.integers(1, 12)


def made(name: ScheduleName, p: int, m: int) -> Schedule:
    return build(name, Setting(num_ranks=p, num_micro_batches=m))


def test_gpipe_runs_all_forwards_then_all_backwards():
    assert render(made(ScheduleName.GPIPE, 2, 3)) == "F0 F1 F2 B0 B1 B2\nF0 F1 F2 B0 B1 B2\n"


def test_1f1b_alternates_once_each_rank_is_warm():
    assert render(made(ScheduleName.ONE_F_ONE_B, 4, 5)).splitlines() == [
        "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4",
        "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
        "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4",
        "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4",
    ]


def test_1f1b_with_fewer_micro_batches_than_ranks_never_alternates_at_first():
    assert render(made(ScheduleName.ONE_F_ONE_B, 4, 2)).splitlines() == [
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 F1 B0 B1",
        "F0 B0 F1 B1",
    ]


@given(p=few, m=few)
def test_a_rank_of_1f1b_holds_no_more_micro_batches_than_ranks_from_it_on(p, m):
    assert peak_activations(made(ScheduleName.ONE_F_ONE_B, p, m)) == tuple(min(m, p - i) for i in range(p))


@given(p=few, m=few)
def test_gpipe_holds_every_micro_batch_on_every_rank(p, m):
    assert peak_activations(made(ScheduleName.GPIPE, p, m)) == (m,) * p


def test_an_action_prints_as_it_parses():
    assert parse_action("F3") == Action(ActionKind.FORWARD, 3)
    assert str(Action(ActionKind.BACKWARD, 12)) == "B12"
    assert parse_action("W3.1@2") == Action(ActionKind.WEIGHT, 3, chunk=1, version=2)
    assert str(Action(ActionKind.INPUT, 0, version=4)) == "I0@4"


@pytest.mark.parametrize("text", ["", "F", "3", "X3", "F-1", "F1.5.2", "f3", "F٣", "F3.", "F3@", "F3@1.2", "F3 "])
def test_what_is_no_action_is_refused(text):
    with pytest.raises(ScheduleError, match="write F, B, I, W or O and a number"):
        parse_action(text)


def test_the_text_form_may_hold_comments_blank_lines_and_routes():
    schedule = parse("# Chimera\nroute 0 1: 0\nroute 1 0: 1\n\nF0 F1 B1 B0  # rank 0\nF1 F0 B0 B1\n")

    assert schedule.routes == ((0, 1), (1, 0))
    assert schedule.route_of == (0, 1)
    assert render(schedule) == "route 0 1: 0\nroute 1 0: 1\nF0 F1 B1 B0\nF1 F0 B0 B1\n"
    validate(schedule)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no rank has a line; write one line of actions for each rank, as in F0 F1 B0 B1"),
        ("F0 B0\nF0 Q0", "line 2: 'Q0' is no action"),
        ("route 0 x\nF0 B0", "line 1: route '0 x' is no list of ranks; write numbers, as in route 0 1 1 0"),
        ("route 0 1\nF0 B0", "route 0 1 must pass each of the ranks 0 to 0, for which there are lines, and no other"),
        ("route 0 1: 0\nroute 1 0 0: 1\nF0\nF0", "routes of 2 and 3 stages; all must have the same stages"),
        ("route 0 1: 0\nroute 1 0: x\nF0 F1\nF0", "'x' names no micro-batches; write numbers or ranges, as in 0 2-5"),
        ("route 0 1: 0\nroute 1 0: 2\nF0 F1 F2\nF0", "micro-batch 1 takes none of the routes; name it after a"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_way_out(text, problem):
    with pytest.raises(ScheduleError) as error:
        parse(text)

    assert str(error.value).startswith(problem)


def test_a_looped_route_gives_a_rank_every_pth_stage_and_a_folded_one_mirrors():
    loop = one_route(looped(2, 2), [[], []], 1)
    fold = one_route(folded(2), [[], []], 1)

    assert loop.held_by(1) == (Held(0, 1), Held(0, 3))
    assert fold.held_by(0) == (Held(0, 0), Held(0, 3))
    assert folded(2, 3) == (0, 1, 1, 0, 0, 1, 1, 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "F0 B0 B0",
            "rank 0 runs B0 2 times, I0 0 times and W0 0 times; after F0 it must run B0 once, or I0 and W0 once each",
        ),
        (
            "F0 F1 B0 W1",
            "rank 0 runs B1 0 times, I1 0 times and W1 1 times; after F1 it must run B1 once, or I1 and W1 once each",
        ),
        ("F0 B0\nF1 B1", "rank 0 runs F1 0 times; it must run it once"),
        ("F0.1 B0", "rank 0: F0.1 is on chunk 1, but the route of its micro-batch gives this rank 1 chunk; chunks"),
        ("B0 F0", "rank 0 waits for ever before B0: it needs F0 of rank 0, which never ends"),
        ("F0 W0 I0", "rank 0 waits for ever before W0: it needs I0 of rank 0, which never ends"),
        ("F0 F1 B0 B1\nF1 B1 B0 F0", "rank 0 waits for ever before B0: it needs B0 of rank 1, which never ends"),
        ("F0 B0 F1 B1\nF0 F1 B0 B1", "rank 0 waits for ever before B0: it needs B0 of rank 1, which never ends"),
        ("F0@0 B0@0 O2", "rank 0: O2 follows version 0; it must be O1"),
        ("F0@1 O1 B0@1", "rank 0: F0@1 uses a version that no update before it has made"),
        ("F0@0 O1 B0@1", "rank 0: B0@1 must use version 0, which its forward used"),
        ("F0 B0@0 O1", "rank 0: F0 must name its weight version: the schedule has 0 updates before it"),
        ("F0@0 B0@0", "rank 0: F0@0 names one of several versions: the schedule has 0 updates before it"),
    ],
)
def test_what_cannot_be_played_is_refused_with_rank_and_action(text, problem):
    with pytest.raises(ScheduleError) as error:
        validate(parse(text))

    assert str(error.value).startswith(problem)


def test_a_deadlock_that_only_sends_that_wait_would_meet_is_found():
    # Rank 1 wants micro-batch 2 first; rank 0 sends 0 and 1 first, and where a send waits for its
    # receive, stops there.
    with pytest.raises(ScheduleError) as error:
        validate(parse("F0 F1 F2 B2 B1 B0\nF2 B2 F1 B1 F0 B0"))

    assert str(error.value) == (
        "rank 0 waits for ever to send what F2 made: rank 1 never takes the messages before it on that link, and with"
        " sends that wait for their receivers nothing moves"
    )
    validate(parse("F0 F1 B1 B0\nF1 B1 F0 B0"))


def test_a_rank_above_its_cap_is_refused():
    with pytest.raises(ScheduleError) as error:
        validate(made(ScheduleName.GPIPE, 2, 4), activation_caps=[4, 3])

    assert str(error.value) == "rank 1 holds the activations of 4 micro-batches; its cap is 3"


def test_weight_versions_are_held_until_their_last_use():
    stashing = parse("F0@0 F1@0 B0@0 O1 F2@1 B1@0 O2 B2@1 O3")

    assert live_versions(stashing.ranks[0]) == 2
    assert live_versions(made(ScheduleName.GPIPE, 1, 3).ranks[0]) == 1


def test_activations_of_a_split_backward_are_held_until_the_weight_gradient():
    assert peak_in_flight((F(0), I(0), F(1), I(1))) == 2


def test_waits_are_named_by_what_the_rank_still_has_to_do():
    actions = made(ScheduleName.ONE_F_ONE_B, 3, 4).ranks[1]

    assert [f"{a} {cause}" for a, cause in zip(actions, wait_causes(actions), strict=True)] == [
        "F0 warm-up",
        "F1 warm-up",
        "B0 warm-up",
        "F2 activation",
        "B1 gradient",
        "F3 activation",
        "B2 cool-down",
        "B3 cool-down",
    ]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name is not ScheduleName.AUTO])  # test_auto.py
@settings(deadline=None)  # V-shaped lists are made by trying
@given(p=st.integers(1, 4), m=few)
def test_every_schedule_can_be_played_and_reads_back_what_it_printed(name, p, m):
    try:
        schedule = made(name, p, m)
    except ScheduleError:
        return  # does not exist for these sizes, as its own tests say

    validate(schedule)
    assert parse(render(schedule)) == schedule
    assert schedule.num_ranks == p
    validate(schedule.forward_only())


def test_an_unknown_number_of_chunks_is_refused_with_the_way_out():
    with pytest.raises(ScheduleError, match="1F1B has 1 chunk on each rank, not 2; leave the number out, or use"):
        build(ScheduleName.ONE_F_ONE_B, Setting(num_ranks=2, num_micro_batches=2, num_chunks=2))
