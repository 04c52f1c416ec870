"""Chimera and DualPipe: lists, bubbles and memory against their papers' formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.costs import equal_shares
from pipelinejob.schedules.makers.bidirectional import chimera, dualpipe
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import render
from pipelinejob.schedules.validate import validate
from pipelinejob.simulation.simulate import simulate
from support.plans.schedule_oracles import makespan_in_pairs


def setting(p, m):
    return Setting(num_ranks=p, num_micro_batches=m)


def idle(schedule, *, forward_s=1.0, input_s=1.0, weight_s=1.0):
    """Return the makespan less a rank's work, in the unit of a rank's share."""
    costs = equal_shares(schedule.num_ranks, forward_s=forward_s, input_s=input_s, weight_s=weight_s)
    work = schedule.num_micro_batches * (forward_s + input_s + weight_s)
    return simulate(schedule, costs(schedule.routes)).makespan_s - work


def test_chimera_enters_the_pipeline_at_both_ends():
    assert render(chimera(setting(4, 4))).splitlines() == [
        "route 0 1 2 3: 0 2",
        "route 3 2 1 0: 1 3",
        "F0 F2 F1 B1 F3 B3 B0 B2",
        "F0 F1 F2 F3 B1 B0 B3 B2",
        "F1 F0 F3 F2 B0 B1 B2 B3",
        "F1 F3 F0 B0 F2 B2 B1 B3",
    ]


@pytest.mark.parametrize("p", [2, 4, 6, 8])
@pytest.mark.parametrize("units", [1, 2, 3])
def test_chimeras_bubble_is_the_papers_where_backward_and_forward_are_alike(p, units):
    """(D-2)/(2N+D-2) of the makespan: D-2 forwards are lost."""
    assert idle(chimera(setting(p, units * p)), input_s=0.5, weight_s=0.5) == p - 2


@pytest.mark.parametrize("p", [2, 4, 6, 8])
def test_chimeras_bubble_is_the_papers_where_a_backward_takes_two_forwards(p):
    """(D-2)/(3N/2+D-2) of the makespan, N = D: 2(D-2) forwards are lost."""
    assert idle(chimera(setting(p, p))) == 2 * (p - 2)


@pytest.mark.parametrize("p", [2, 4, 6, 8])
def test_chimera_holds_half_the_depth_and_one_more_at_the_ends(p):
    inward = [min(i, p - 1 - i) for i in range(p)]

    assert peak_activations(chimera(setting(p, p))) == tuple(p / 2 + 1 + i for i in inward)
    assert max(peak_activations(chimera(setting(p, 4 * p)))) == p


@given(p=st.sampled_from([2, 4, 6]), m=st.integers(1, 20))
def test_chimera_can_be_played_with_any_number_of_micro_batches(p, m):
    validate(chimera(setting(p, m)))


@pytest.mark.parametrize("p", [2, 4, 6, 8, 12])
@pytest.mark.parametrize("extra", [0, 2, 8])
def test_dualpipe_loses_less_than_its_formula_as_a_pairs_parts_need_not_wait_for_each_other(p, extra):
    schedule = dualpipe(setting(p, 2 * p + extra))
    f, i, w = 18.5, 18.1, 9.3

    validate(schedule)
    assert idle(schedule, forward_s=f, input_s=i, weight_s=w) == pytest.approx((p / 2 - 1) * (f + i - w))
    assert peak_activations(schedule) == (p + 1,) * p


@pytest.mark.parametrize("p", [2, 4, 6, 8])
def test_dualpipe_in_pairs_that_cannot_be_parted_has_the_bubble_of_its_formula(p):
    """(p/2-1)(F&B + B - 3W) with F&B = F + B: README of DeepSeek's DualPipe, B = I + W; exact where F = I."""
    schedule = dualpipe(setting(p, 2 * p))
    f, i, w = 18.5, 18.5, 9.3

    lost = makespan_in_pairs(schedule, forward_s=f, input_s=i, weight_s=w) - 2 * p * (f + i + w)

    assert lost == pytest.approx((p / 2 - 1) * ((f + i + w) + (i + w) - 3 * w))


@given(p=st.sampled_from([2, 4, 6]), m=st.integers(1, 20))
def test_dualpipe_can_be_played_with_any_number_of_micro_batches(p, m):
    schedule = dualpipe(setting(p, m))

    validate(schedule)
    assert max(peak_activations(schedule)) <= p + 1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (chimera, "Chimera runs from both ends and needs an even number of ranks, not 3; use 4, or Hanayo"),
        (dualpipe, "DualPipe runs from both ends and needs an even number of ranks, not 3; use 4, or DualPipeV"),
    ],
)
def test_an_odd_number_of_ranks_is_refused_with_the_way_out(make, problem):
    with pytest.raises(ScheduleError) as error:
        make(setting(3, 6))

    assert str(error.value) == problem
