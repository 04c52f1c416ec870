"""PipeDream and PipeDream-2BW: their lists, and the weight versions that they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.schedules.actions import ActionKind, ScheduleError
from pipelinejob.schedules.makers.asynchronous import pipedream, pipedream_2bw
from pipelinejob.schedules.memory import live_versions, peak_activations
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse, render
from pipelinejob.schedules.validate import validate

few = st.integers(1, 9)


def setting(p, m, **others):
    return Setting(num_ranks=p, num_micro_batches=m, **others)


def test_pipedream_updates_after_each_backward_and_stashes_what_a_forward_used():
    assert render(pipedream(setting(2, 4))).splitlines() == [
        "F0@0 F1@0 B0@0 O1 F2@1 B1@0 O2 F3@2 B2@1 O3 B3@2 O4",
        "F0@0 B0@0 O1 F1@1 B1@1 O2 F2@2 B2@2 O3 F3@3 B3@3 O4",
    ]


def test_vertical_sync_lets_every_rank_use_the_first_ones_version():
    assert render(pipedream(setting(2, 3, vertical_sync=True))).splitlines() == [
        "F0@0 F1@0 B0@0 O1 F2@1 B1@0 O2 B2@1 O3",
        "F0@0 B0@0 O1 F1@0 B1@0 O2 F2@1 B2@1 O3",
    ]


def test_2bw_uses_weights_one_batch_late():
    assert render(pipedream_2bw(setting(2, 6))).splitlines() == [
        "F0@0 F1@0 B0@0 F2@0 B1@0 O1 F3@0 B2@0 F4@1 B3@0 O2 F5@1 B4@1 B5@1 O3",
        "F0@0 B0@0 F1@0 B1@0 O1 F2@0 B2@0 F3@0 B3@0 O2 F4@1 B4@1 F5@1 B5@1 O3",
    ]


def test_the_last_update_gathers_the_rest():
    updates = [a for a in pipedream(setting(1, 5, update_interval=2)).ranks[0] if a.kind is ActionKind.UPDATE]

    assert [str(update) for update in updates] == ["O1", "O2", "O3"]


@given(p=few, m=st.integers(18, 24))
def test_a_rank_of_pipedream_holds_as_many_versions_as_ranks_from_it_on(p, m):
    schedule = pipedream(setting(p, m))

    assert [live_versions(actions) for actions in schedule.ranks] == [p - i for i in range(p)]
    assert peak_activations(schedule) == tuple(p - i for i in range(p))


@given(p=few, m=st.integers(1, 30), interval=st.integers(1, 12))
def test_2bw_holds_two_versions_however_deep_the_pipeline(p, m, interval):
    try:
        schedule = pipedream_2bw(setting(p, m, update_interval=interval))
    except ScheduleError:
        assert interval < p or interval > m
        return

    validate(schedule)
    assert all(live_versions(actions) <= 2 for actions in schedule.ranks)


@given(p=few, m=st.integers(1, 20), interval=st.integers(1, 20), sync=st.booleans())
def test_pipedream_can_be_played_whatever_the_sizes(p, m, interval, sync):
    if interval > m:
        return
    schedule = pipedream(setting(p, m, update_interval=interval, vertical_sync=sync))

    validate(schedule)
    assert parse(render(schedule)) == schedule
    assert max(live_versions(actions) for actions in schedule.ranks) <= p


@pytest.mark.parametrize(
    ("make", "sizes", "problem"),
    [
        (pipedream, (2, 4, 5), "updates of 5 micro-batches do not fit into a step of 4; gather at most 4"),
        (pipedream, (2, 4, -1), "updates of -1 micro-batches cannot be; gather at least 1"),
        (pipedream_2bw, (4, 8, 3), "updates of 3 micro-batches on 4 ranks need more than two weight versions; gather"),
    ],
)
def test_intervals_that_cannot_be_are_refused_with_the_way_out(make, sizes, problem):
    p, m, interval = sizes
    with pytest.raises(ScheduleError) as error:
        make(setting(p, m, update_interval=interval))

    assert str(error.value).startswith(problem)
