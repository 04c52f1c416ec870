"""ZB-V, V-Half, V-Min and DualPipeV: lists, bubbles and memory against their papers'; and Hanayo's waves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.costs import equal_shares
from pipelinejob.schedules.makers.v_shaped import dualpipe_v, v_half, v_min, zb_v
from pipelinejob.schedules.makers.wave import hanayo
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.text import render
from pipelinejob.schedules.validate import validate
from pipelinejob.simulation.simulate import simulate
from support.plans.schedule_oracles import makespan_in_pairs, torchs_schedule

few = st.integers(1, 8)
some = st.integers(1, 30)

# The ratio of forward, input gradient and weight gradient that the zero-bubble paper measured for
# its 1.5B model.
MEASURED = (18.5, 18.1, 9.3)
EQUAL = (1.0, 1.0, 1.0)


def played(schedule, forward_s=1.0, input_s=1.0, weight_s=1.0):
    costs = equal_shares(schedule.num_ranks, forward_s=forward_s, input_s=input_s, weight_s=weight_s)
    return simulate(schedule, costs(schedule.routes))


def bubble(schedule, *seconds):
    result = played(schedule, *seconds)
    return result.makespan_s - result.compute_s[0]


def test_zb_v_computes_the_loss_on_the_rank_where_a_micro_batch_came_in():
    assert render(zb_v(2, 3)).splitlines() == [
        "route 0 1 1 0",
        "F0 F1 F2 F0.1 I0.1 W0.1 F1.1 I1.1 I0 W1.1 W0 F2.1 I2.1 I1 W2.1 I2 W1 W2",
        "F0 F0.1 F1 F1.1 I0.1 I0 W0.1 F2 W0 F2.1 I1.1 I1 I2.1 I2 W1.1 W1 W2.1 W2",
    ]


@given(p=few, more=st.integers(0, 20))
def test_no_rank_of_zb_v_waits_within_its_span(p, more):
    schedule = zb_v(p, 2 * p - 1 + more)

    assert played(schedule).span_bubble_rate == pytest.approx(0)
    assert bubble(schedule) == pytest.approx((p - 1) / 2)
    assert peak_activations(schedule) == (p,) * p


@pytest.mark.parametrize(("p", "m", "rate"), [(4, 12, 0.0400), (8, 24, 0.0464), (16, 48, 0.0495)])
def test_zb_vs_bubble_is_what_its_ranks_begin_apart(p, m, rate):
    """(p-1)/(6m+p-1) of the makespan."""
    assert round(played(zb_v(p, m)).bubble_rate, 4) == rate


def test_v_min_holds_two_and_a_half_micro_batches_on_four_ranks():
    schedule = v_min(4, 12)

    assert peak_activations(schedule) == (2.5,) * 4


@given(p=few, m=some)
def test_v_half_holds_half_of_what_1f1b_holds(p, m):
    schedule = v_half(p, m)

    validate(schedule, activation_caps=[(p + 2) / 2] * p)


@given(p=few, m=some)
def test_v_min_holds_a_third_of_what_1f1b_holds(p, m):
    schedule = v_min(p, m)

    validate(schedule, activation_caps=[(p + 4) / 3] * p)


@given(p=few, m=some)
def test_zb_v_holds_what_1f1bs_first_rank_holds(p, m):
    schedule = zb_v(p, m)

    validate(schedule, activation_caps=[p] * p)


@pytest.mark.parametrize(
    ("p", "m", "expected"), [(3, 9, 1.5), (4, 12, 2.5), (5, 15, 4.5), (6, 18, 5.5), (7, 21, 7.5), (8, 24, 8.5)]
)
def test_v_halfs_bubble_is_half_of_1f1bs_and_less(p, m, expected):
    """(3p-7)/2 forwards for even p, (3p-6)/2 for odd."""
    assert bubble(v_half(p, m)) == pytest.approx(expected)


# Span bubble rates that the authors' own generator reaches, measured with it: p, m, seconds,
# V-Half, V-Min.
AUTHORS = [
    (4, 12, EQUAL, 0.0649, 0.1325),
    (4, 12, MEASURED, 0.1119, 0.2751),
    (8, 24, EQUAL, 0.1056, 0.1579),
    (8, 24, MEASURED, 0.1522, 0.2989),
    (8, 32, MEASURED, 0.1186, 0.2712),
    (16, 48, MEASURED, 0.1723, 0.3099),
]


@pytest.mark.parametrize(("p", "m", "seconds", "half", "least"), AUTHORS)
def test_v_half_and_v_min_wait_no_longer_than_their_authors_generator_makes_them(p, m, seconds, half, least):
    assert round(played(v_half(p, m), *seconds).span_bubble_rate, 4) <= half
    assert round(played(v_min(p, m), *seconds).span_bubble_rate, 4) <= least


def test_dualpipe_v_pairs_forwards_with_backwards_of_the_other_chunk():
    assert render(dualpipe_v(2, 5)).splitlines() == [
        "route 0 1 1 0",
        "F0 F1 F2 F0.1 I0.1 W0.1 F1.1 F3 B1.1 F2.1 B0 F4 B2.1 F3.1 B1 B3.1 F4.1 B2 B4.1 I3 W3 I4 W4",
        "F0 F0.1 F1 F1.1 F2 B0.1 F2.1 B0 F3 B1.1 F3.1 B1 F4 B2.1 F4.1 B2 B3.1 B3 I4.1 I4 W4.1 W4",
    ]


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 12), (8, 16)])
def test_dualpipe_v_is_torchs(p, m):
    assert dualpipe_v(p, m) == torchs_schedule("ScheduleDualPipeV", p, m, 2)


@given(p=few, m=some)
def test_dualpipe_v_can_be_played_with_any_number_of_micro_batches(p, m):
    schedule = dualpipe_v(p, m)

    validate(schedule)
    assert max(peak_activations(schedule)) <= p + 0.5


@given(p=few, more=st.integers(0, 12))
def test_every_rank_of_dualpipe_v_holds_half_a_micro_batch_more_than_ranks(p, more):
    assert peak_activations(dualpipe_v(p, 2 * p + more)) == (p + 0.5,) * p


@pytest.mark.parametrize("seconds", [EQUAL, (1.0, 1.5, 0.5), (1.0, 1.0, 0.3)])
@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_dualpipe_v_in_pairs_that_cannot_be_parted_has_the_bubble_of_its_formula(p, seconds):
    """(p-1)(F&B + B - 3W) of a chunk's times, with F&B = F + B: for W <= F <= I."""
    schedule, (f, i, w) = dualpipe_v(p, 3 * p), (each / 2 for each in seconds)

    lost = makespan_in_pairs(schedule, forward_s=f, input_s=i, weight_s=w) - 3 * p * 2 * (f + i + w)

    assert lost == pytest.approx((p - 1) * ((f + i + w) + (i + w) - 3 * w))


@pytest.mark.parametrize("seconds", [EQUAL, MEASURED, (1.0, 1.5, 0.5), (1.0, 0.7, 0.3), (1.0, 1.2, 1.3)])
@pytest.mark.parametrize("p", [2, 4, 8])
def test_dualpipe_v_loses_less_where_a_pairs_parts_need_not_wait_for_each_other(p, seconds):
    f, i, w = (each / 2 for each in seconds)

    assert bubble(dualpipe_v(p, 3 * p), *seconds) < (p - 1) * ((f + i + w) + (i + w) - 3 * w)


def test_a_wave_turns_round_at_the_last_rank_and_comes_back():
    assert render(hanayo(2, 2, 2)).splitlines() == [
        "route 0 1 1 0",
        "F0 F1 F0.1 B0.1 F1.1 B1.1 B0 B1",
        "F0 F0.1 F1 F1.1 B0.1 B0 B1.1 B1",
    ]


@given(p=few, units=st.integers(1, 3), waves=st.integers(1, 3))
def test_w_waves_divide_1f1bs_bubble_by_2w_where_a_backward_is_as_long_as_a_forward(p, units, waves):
    schedule = hanayo(p, units * p, 2 * waves)

    assert bubble(schedule, 1.0, 0.5, 0.5) == pytest.approx(2 * (p - 1) / (2 * waves))


@given(p=few, units=st.integers(1, 3), waves=st.integers(1, 3))
def test_units_of_a_wave_leave_gaps_where_a_backward_takes_two_forwards(p, units, waves):
    assert bubble(hanayo(p, units * p, 2 * waves)) == pytest.approx((units + 1) * (p - 1) / waves)


@given(p=few, m=some, waves=st.integers(1, 3))
def test_waves_can_be_played_with_any_number_of_micro_batches(p, m, waves):
    schedule = hanayo(p, m, 2 * waves)

    validate(schedule)
    if m >= p:
        assert peak_activations(schedule) == pytest.approx([p - (p - 1 - i) / (2 * waves) for i in range(p)])


def test_half_a_wave_is_refused_with_the_way_out():
    with pytest.raises(ScheduleError, match="3 chunks on a rank are no whole waves, which are 2 each; use 4, or Inter"):
        hanayo(4, 8, 3)
