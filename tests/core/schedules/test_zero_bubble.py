"""The zero-bubble schedules: the paper's table, to four decimals, and what they hold in memory."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.scheduler.catalogue import build
from pipelinejob.schedules.actions import ActionKind, ScheduleError
from pipelinejob.schedules.costs import Link, equal_shares, shares
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import render
from pipelinejob.schedules.validate import validate
from pipelinejob.simulation.simulate import simulate

# arXiv 2401.10241: p, m, milliseconds of F, I, W and a message; bubble rates of 1F1B, ZB-H1,
# ZB-H2, ZB-1p, ZB-2p
PAPER = [
    (8, 24, 18.522, 18.086, 9.337, 0.601, 0.2431, 0.1585, 0.1083, 0.1585, 0.0433),
    (8, 32, 18.513, 18.086, 9.331, 0.626, 0.1985, 0.1242, 0.0837, 0.1242, 0.0039),
    (8, 64, 18.546, 18.097, 9.321, 0.762, 0.1240, 0.0674, 0.0444, 0.0674, 0.0026),
    (8, 24, 29.718, 29.444, 19.927, 0.527, 0.2347, 0.1323, 0.0698, 0.1323, 0.0029),
    (8, 32, 29.802, 29.428, 19.530, 0.577, 0.1898, 0.1045, 0.0559, 0.1045, 0.0022),
    (8, 64, 29.935, 29.621, 19.388, 0.535, 0.1091, 0.0554, 0.0294, 0.0554, 0.0010),
    (16, 48, 11.347, 11.248, 8.132, 0.377, 0.2552, 0.1397, 0.0672, 0.1397, 0.0066),
    (16, 64, 11.307, 11.254, 8.101, 0.379, 0.2082, 0.1088, 0.0516, 0.1088, 0.0054),
    (16, 128, 11.325, 11.308, 8.109, 0.378, 0.1251, 0.0576, 0.0266, 0.0576, 0.0028),
    (32, 96, 10.419, 10.207, 7.715, 0.408, 0.2646, 0.1421, 0.0641, 0.1421, 0.0038),
    (32, 128, 10.408, 10.204, 7.703, 0.408, 0.2168, 0.1106, 0.0490, 0.1106, 0.0029),
    (32, 256, 10.402, 10.248, 7.698, 0.460, 0.1352, 0.0594, 0.0257, 0.0594, 0.0018),
]
HANDMADE = (ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1, ScheduleName.ZB_H2)

few = st.integers(1, 12)


def setting(row) -> Setting:
    p, m, forward, input_, weight, message = row[:6]
    costs = equal_shares(p, forward_s=forward, input_s=input_, weight_s=weight, link=Link(latency_s=message))
    return Setting(num_ranks=p, num_micro_batches=m, costs=costs)


def rate(schedule, made_for: Setting) -> float:
    return simulate(schedule, made_for.costs_of(*schedule.routes)).span_bubble_rate


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"p{row[0]}-m{row[1]}-F{row[2]}")
def test_the_papers_rates_of_1f1b_and_the_handmade_schedules_are_met_to_four_decimals(row):
    made_for = setting(row)

    rates = tuple(round(rate(build(name, made_for), made_for), 4) for name in HANDMADE)

    assert rates == row[6:9]


def test_zb_h1_leaves_weight_gradients_one_micro_batch_further_behind_on_each_rank():
    assert render(build(ScheduleName.ZB_H1, Setting(num_ranks=3, num_micro_batches=5))).splitlines() == [
        "F0 F1 F2 I0 W0 F3 I1 W1 F4 I2 W2 I3 W3 I4 W4",
        "F0 F1 I0 F2 I1 W0 F3 I2 W1 F4 I3 W2 I4 W3 W4",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 F4 I4 W2 W3 W4",
    ]


def test_zb_h2_runs_twice_as_far_ahead_and_twice_as_far_behind():
    assert render(build(ScheduleName.ZB_H2, Setting(num_ranks=3, num_micro_batches=7))).splitlines() == [
        "F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 F6 I2 W2 I3 W3 I4 W4 I5 W5 I6 W6",
        "F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 F6 I4 W2 I5 W3 I6 W4 W5 W6",
        "F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 F6 I6 W2 W3 W4 W5 W6",
    ]


@given(p=few, m=few)
def test_zb_h1_holds_p_micro_batches_on_every_rank_as_1f1b_does_on_its_first(p, m):
    schedule = build(ScheduleName.ZB_H1, Setting(num_ranks=p, num_micro_batches=m))

    validate(schedule)
    assert peak_activations(schedule) == (min(m, p),) * p


@given(p=few, m=st.integers(1, 30))
def test_zb_h2_holds_one_less_than_twice_as_many(p, m):
    schedule = build(ScheduleName.ZB_H2, Setting(num_ranks=p, num_micro_batches=m))

    validate(schedule)
    assert peak_activations(schedule) == (min(m, 2 * p - 1),) * p


@pytest.mark.parametrize(("weight", "bubble_s"), [(10.0, 30.0), (7.0, 39.0), (2.0, 54.0)])
def test_zb_h1s_bubble_is_p_minus_1_times_f_plus_i_less_w(weight, bubble_s):
    costs = equal_shares(4, forward_s=10.0, input_s=10.0, weight_s=weight)
    schedule = build(ScheduleName.ZB_H1, Setting(num_ranks=4, num_micro_batches=8))

    simulation = simulate(schedule, costs(schedule.routes))

    assert simulation.makespan_s - 8 * (20.0 + weight) == pytest.approx(bubble_s)
    assert simulation.longest_span_s - 8 * (20.0 + weight) == pytest.approx(bubble_s)


@pytest.mark.parametrize(("weight", "bubble_s"), [(10.0, 0.0), (7.0, 18.0), (2.0, 48.0)])
def test_zb_h2s_bubble_within_a_span_is_p_minus_1_times_f_plus_i_less_2w(weight, bubble_s):
    costs = equal_shares(4, forward_s=10.0, input_s=10.0, weight_s=weight)
    schedule = build(ScheduleName.ZB_H2, Setting(num_ranks=4, num_micro_batches=12))

    simulation = simulate(schedule, costs(schedule.routes))

    assert simulation.longest_span_s - 12 * (20.0 + weight) == pytest.approx(bubble_s)


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"p{row[0]}-m{row[1]}-F{row[2]}")
def test_the_papers_rates_of_zb_1p_are_met_in_the_memory_of_p_micro_batches(row):
    made_for = setting(row)

    schedule = build(ScheduleName.ZB_1P, made_for)

    validate(schedule)
    assert round(rate(schedule, made_for), 4) <= row[9]
    assert max(peak_activations(schedule)) <= row[0]


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"p{row[0]}-m{row[1]}-F{row[2]}")
def test_the_papers_rates_of_zb_2p_are_met_in_the_memory_of_2p_micro_batches_as_the_paper_counts_it(row):
    made_for = setting(row)

    schedule = build(ScheduleName.ZB_2P, made_for)

    validate(schedule)
    assert round(rate(schedule, made_for), 4) <= row[10]
    assert max(papers_peak(actions) for actions in schedule.ranks) <= 2 * row[0] + 1e-9


def papers_peak(actions) -> float:
    """Count an activation whole from F to I, and 32/66 of it from there to W."""
    held = peak = 0.0
    for action in actions:
        held += {ActionKind.FORWARD: 1.0, ActionKind.INPUT: -34 / 66, ActionKind.WEIGHT: -32 / 66}[action.kind]
        peak = max(peak, held)
    return peak


def test_where_all_of_an_activation_counts_until_its_weight_gradient_zb_2p_reaches_what_its_last_rank_allows():
    # 7 forwards and messages to the last rank; its 24 F and I and 24-16 W; 7 messages and I back
    # to rank 0; its I and W
    least_s = 7 * (29.718 + 0.527) + 24 * (29.718 + 29.444) + 8 * 19.927 + 7 * (0.527 + 29.444) + 19.927
    made_for = replace(setting(PAPER[3]), activation_caps=(16.0,) * 8)

    schedule = build(ScheduleName.ZB_2P, made_for)

    validate(schedule, activation_caps=made_for.activation_caps)
    assert simulate(schedule, made_for.costs_of(*schedule.routes)).longest_span_s == pytest.approx(least_s)


costs_ms = st.floats(0.1, 10)


@given(data=st.data(), p=st.integers(1, 6), m=st.integers(1, 12), name=st.sampled_from(["ZB-1p", "ZB-2p"]))
def test_lists_made_for_any_costs_and_caps_are_valid(data, p, m, name):
    forward_s, input_s, weight_s = (data.draw(st.lists(costs_ms, min_size=p, max_size=p)) for _ in range(3))
    caps = data.draw(st.none() | st.lists(st.floats(1, 2 * p), min_size=p, max_size=p).map(tuple))
    costs = shares(forward_s=forward_s, input_s=input_s, weight_s=weight_s, link=Link(latency_s=0.5, message_s=0.5))
    made_for = Setting(num_ranks=p, num_micro_batches=m, costs=costs, activation_caps=caps)

    schedule = build(ScheduleName(name), made_for)

    validate(schedule, activation_caps=caps)


def test_a_cap_below_one_micro_batch_is_refused():
    with pytest.raises(
        ScheduleError, match=r"a memory cap of 0\.5 has no room for a micro-batch; the least that does is 1"
    ):
        build(ScheduleName.ZB_1P, Setting(num_ranks=2, num_micro_batches=2, activation_caps=(1.0, 0.5)))
