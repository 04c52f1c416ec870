"""Interleaved 1F1B, looped breadth-first and forwards alone: lists, bubbles and memory."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.schedules.costs import Link, equal_shares
from pipelinejob.schedules.makers.flush import one_f_one_b
from pipelinejob.schedules.makers.interleaved import forward_only, interleaved_1f1b, looped_bfs
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.text import render
from pipelinejob.schedules.validate import validate
from pipelinejob.simulation.simulate import simulate
from support.plans.schedule_oracles import torchs_schedule

few = st.integers(1, 8)
chunks = st.integers(1, 4)


def bubble(schedule) -> float:
    """Return the makespan beyond a rank's work, where a rank's share of a forward takes 1 s and of a backward 2 s."""
    result = simulate(schedule, equal_shares(schedule.num_ranks)(schedule.routes))
    return pytest.approx(result.makespan_s - result.compute_s[0])


def test_interleaved_1f1b_alternates_over_its_chunks_once_warm():
    assert render(interleaved_1f1b(2, 4, 2)).splitlines() == [
        "route 0 1 0 1",
        "F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3",
        "F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3",
    ]


def test_interleaved_1f1b_takes_groups_of_one_more_where_as_many_are_left_as_there_are_groups():
    forwards = [a for a in interleaved_1f1b(3, 8, 2).ranks[0] if a.kind == "F"]

    assert " ".join(map(str, forwards)) == "F0 F1 F2 F3 F0.1 F1.1 F2.1 F3.1 F4 F5 F6 F7 F4.1 F5.1 F6.1 F7.1"


def test_interleaved_1f1b_leaves_turns_out_where_a_group_is_short():
    assert render(interleaved_1f1b(3, 5, 2)).splitlines() == [
        "route 0 1 2 0 1 2",
        "F0 F1 F0.1 F1.1 F2 F3 F4 B0.1 F2.1 B1.1 F3.1 F4.1 B0 B1 B2.1 B3.1 B4.1 B2 B3 B4",
        "F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F4 F2.1 B0 F3.1 B1 F4.1 B2.1 B3.1 B4.1 B2 B3 B4",
        "F0 F1 F0.1 B0.1 F1.1 B1.1 F2 F3 B0 F4 B1 F2.1 B2.1 F3.1 B3.1 F4.1 B4.1 B2 B3 B4",
    ]


@pytest.mark.parametrize(
    ("p", "m", "v", "expected"),
    [
        (4, 12, 2, 4.5),
        (8, 24, 2, 10.5),
        (8, 24, 3, 7.0),
        (8, 24, 4, 5.25),
        (8, 24, 12, 1.75),
        (16, 32, 2, 22.5),
        (4, 13, 2, 4.5),  # 13 mod 4 <= 13 // 4: groups of 5
        (8, 58, 3, 7.0),
        (8, 9, 2, 10.5),  # one group
        (4, 11, 2, 5.0),  # 11 mod 4 > 11 // 4: short groups
    ],
)
def test_interleaved_1f1bs_bubble_is_1f1bs_divided_by_its_chunks(p, m, v, expected):
    assert bubble(interleaved_1f1b(p, m, v)) == expected


@pytest.mark.parametrize(
    ("p", "first", "last"),
    [(4, 5.5, 2.5), (8, 11.5, 4.5), (16, 23.5, 8.5)],
)
def test_interleaved_1f1b_holds_more_than_1f1b(p, first, last):
    peaks = peak_activations(interleaved_1f1b(p, 3 * p, 2))

    assert (peaks[0], peaks[-1]) == (first, last)
    assert list(peaks) == sorted(peaks, reverse=True)


@given(p=few, m=st.integers(1, 40), v=chunks)
def test_interleaved_1f1b_can_be_played_with_any_number_of_micro_batches(p, m, v):
    schedule = interleaved_1f1b(p, m, v)

    validate(schedule)
    held_chunks = round(v * max(peak_activations(schedule)))
    assert held_chunks <= v * p + (p - 1) + (v - 1)


@given(p=few, groups=st.integers(1, 4), v=chunks, data=st.data())
def test_interleaved_1f1bs_bubble_is_the_formulas_with_any_rest_that_groups_can_share(p, groups, v, data):
    rest = data.draw(st.integers(0, min(groups, p - 1)))

    assert bubble(interleaved_1f1b(p, groups * p + rest, v)) == 3 * (p - 1) / v


def test_interleaved_1f1b_of_one_chunk_is_1f1b():
    assert interleaved_1f1b(4, 9, 1) == one_f_one_b(4, 9)


@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 8, 3), (8, 16, 2)])
def test_interleaved_1f1b_is_torchs(p, m, v):
    assert interleaved_1f1b(p, m, v) == torchs_schedule("ScheduleInterleaved1F1B", p, m, v)


def test_looped_bfs_finishes_a_chunk_before_the_next():
    assert render(looped_bfs(2, 3, 2)).splitlines() == [
        "route 0 1 0 1",
        "F0 F1 F2 F0.1 F1.1 F2.1 B0.1 B1.1 B2.1 B0 B1 B2",
        "F0 F1 F2 F0.1 F1.1 F2.1 B0.1 B1.1 B2.1 B0 B1 B2",
    ]


def test_looped_bfs_takes_many_micro_batches_group_by_group():
    forwards = [a for a in looped_bfs(2, 7, 2).ranks[0] if a.kind == "F"]

    runs = [(chunk, [a.micro_batch for a in run]) for chunk, run in groupby(forwards, key=lambda a: a.chunk)]
    assert runs == [(0, [0, 1]), (1, [0, 1]), (0, [2, 3]), (1, [2, 3]), (0, [4, 5, 6]), (1, [4, 5, 6])]


@given(p=few, m=st.integers(1, 40), v=chunks)
def test_looped_bfs_holds_every_micro_batch_and_has_interleaved_1f1bs_bubble(p, m, v):
    schedule = looped_bfs(p, m, v)

    validate(schedule)
    assert peak_activations(schedule) == (m,) * p
    if m >= p:
        assert bubble(schedule) == 3 * (p - 1) / v


@given(p=few, m=st.integers(1, 40), v=chunks)
def test_forwards_alone_can_be_played(p, m, v):
    validate(forward_only(p, m, v))


@pytest.mark.parametrize(("p", "m", "v", "expected"), [(4, 8, 1, 3.0), (4, 8, 2, 1.5), (8, 16, 4, 1.75)])
def test_forwards_alone_fill_the_pipeline_once(p, m, v, expected):
    assert bubble(forward_only(p, m, v)) == expected


def test_forwards_alone_run_in_order():
    assert render(forward_only(2, 3, 1)) == "F0 F1 F2\nF0 F1 F2\n"


# arXiv 2401.10241, as recalled: p, m, v, milliseconds of F, I, W and a message; 1F1B-I's rate
# there, and ours
PAPER = [
    (8, 24, 3, 18.522, 18.086, 9.337, 0.601, 0.1055, 0.1090),
    (8, 32, 3, 18.513, 18.086, 9.331, 0.626, 0.0818, 0.0847),
    (8, 64, 3, 18.546, 18.097, 9.321, 0.762, 0.0443, 0.0461),
    (8, 24, 4, 29.718, 29.444, 19.927, 0.527, 0.0808, 0.0827),
    (8, 32, 4, 29.802, 29.428, 19.530, 0.577, 0.0628, 0.0644),
    (8, 64, 4, 29.935, 29.621, 19.388, 0.535, 0.0320, 0.0328),
    (16, 48, 3, 11.347, 11.248, 8.132, 0.377, 0.1104, 0.1136),
    (16, 64, 3, 11.307, 11.254, 8.101, 0.379, 0.0852, 0.0878),
    (16, 128, 3, 11.325, 11.308, 8.109, 0.378, 0.0445, 0.0459),
    (32, 96, 2, 10.419, 10.207, 7.715, 0.408, 0.1493, 0.1528),
    (32, 128, 2, 10.408, 10.204, 7.703, 0.408, 0.1164, 0.1192),
    (32, 256, 2, 10.402, 10.248, 7.698, 0.460, 0.0624, 0.0641),
]


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"p{row[0]}-m{row[1]}-F{row[3]}")
def test_the_zero_bubble_papers_rates_count_p_messages_less(row):
    p, m, v, forward, input_, weight, message, papers, ours = row
    costs = equal_shares(p, forward_s=forward, input_s=input_, weight_s=weight, link=Link(latency_s=message))

    schedule = interleaved_1f1b(p, m, v)
    result = simulate(schedule, costs(schedule.routes))

    assert round(result.span_bubble_rate, 4) == ours
    assert round(1 - result.compute_s[0] / (result.longest_span_s - p * message), 4) == papers
