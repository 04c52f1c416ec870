"""The simulator against closed forms, published numbers, and what must hold of every simulation."""

import time
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelinejob.base.timeline import COMPUTE, SpanKind, bubble_ratio
from pipelinejob.scheduler.catalogue import FAMILIES, build
from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.schedules.costs import Costs, Link, equal_shares, shares
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse
from pipelinejob.simulation.simulate import shared_seconds, simulate
from support.examples import examples

seconds = st.floats(0.001, 10)
NAMES = sorted(name for name in FAMILIES if name is not ScheduleName.AUTO)  # which test_auto.py plays
FLUSHED = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B)


def balanced(name, p, m, *, link=Link(), **others):  # noqa: B008 # a value
    schedule = build(name, Setting(num_ranks=p, num_micro_batches=m))
    return simulate(schedule, equal_shares(p, link=link)(schedule.routes), **others)


def played(text, *, forward_s, input_s, weight_s, ahead_s=None, link=Link(), links=None, **others):  # noqa: B008 # a value
    schedule = parse(text)
    costs = Costs(
        forward_s=forward_s, input_s=input_s, weight_s=weight_s, ahead_s=ahead_s, link=link, links=links or {}
    )
    return simulate(schedule, costs, **others)


@pytest.mark.parametrize("name", FLUSHED)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 8), (2, 1), (4, 2), (4, 8), (4, 32), (8, 32), (16, 5)])
def test_a_balanced_pipeline_has_the_bubble_of_the_papers(name, p, m):
    simulation = balanced(name, p, m)

    assert simulation.makespan_s == 3 * (m + p - 1)
    assert simulation.bubble_ratios == pytest.approx([(p - 1) / (m + p - 1)] * p, abs=1e-12)
    assert simulation.bubble_rate == pytest.approx((p - 1) / (m + p - 1))


# A random stage: its three seconds. A random schedule of the catalogue for them, if it exists for
# these sizes.
stage_lists = st.lists(st.tuples(seconds, seconds, seconds), min_size=1, max_size=6)
links = st.builds(Link, latency_s=st.floats(0, 2), message_s=st.floats(0, 2))
shares_ahead = st.sampled_from([0.0, 0.3, 1.0])


def random_setting(name, stages, m, link, *, ahead=0.0):
    """Return a schedule and its costs; `ahead` is the share of each way back that needs no gradient."""
    model = shares(
        forward_s=[f for f, _, _ in stages],
        input_s=[i for _, i, _ in stages],
        weight_s=[w for _, _, w in stages],
        link=link,
    )
    try:
        schedule = build(name, Setting(num_ranks=len(stages), num_micro_batches=m, costs=model))
    except ScheduleError:
        assume(False)
    costs = model(schedule.routes)
    return schedule, replace(costs, ahead_s=tuple(ahead * each for each in costs.input_s))


@settings(max_examples=examples(60), deadline=None)
@given(
    name=st.sampled_from(NAMES),
    stages=stage_lists,
    m=st.integers(1, 8),
    link=links,
    ahead=shares_ahead,
    concurrency=st.sampled_from([None, 1, 2, 3]),
)
def test_every_second_of_every_rank_is_in_exactly_one_span(name, stages, m, link, *, ahead, concurrency):
    schedule, costs = random_setting(name, stages, m, link, ahead=ahead)
    simulation = simulate(schedule, costs, concurrency=concurrency)

    for stage, ratio in zip(simulation.timeline.stages, simulation.bubble_ratios, strict=True):
        assert stage.spans[0].start_s == 0
        assert stage.spans[-1].end_s == simulation.step_s
        assert all(one.end_s == other.start_s for one, other in zip(stage.spans, stage.spans[1:], strict=False))
        assert all((span.cause is None) == (span.kind not in {SpanKind.RECV, SpanKind.IDLE}) for span in stage.spans)
        if not schedule.is_asynchronous:
            assert bubble_ratio(stage.spans) == pytest.approx(ratio, abs=1e-9)


@settings(max_examples=examples(60), deadline=None)
@given(
    name=st.sampled_from(NAMES),
    stages=stage_lists,
    m=st.integers(1, 8),
    link=links,
    ahead=shares_ahead,
    overlap=st.booleans(),
    concurrency=st.sampled_from([None, 1, 2]),
)
def test_idle_seconds_by_cause_and_computing_add_up_to_the_step(name, stages, m, link, *, ahead, overlap, concurrency):
    setting = random_setting(name, stages, m, link, ahead=ahead)
    simulation = simulate(*setting, overlap=overlap or concurrency is not None, concurrency=concurrency)

    for idle, compute in zip(simulation.idle_s, simulation.compute_s, strict=True):
        assert sum(idle.values()) + compute == pytest.approx(simulation.makespan_s, rel=1e-9)
        assert all(lost >= -1e-9 for lost in idle.values())
        assert overlap is False or idle[WaitCause.SEND] == 0
        assert concurrency is not None or idle[WaitCause.PROCESSOR] == 0


@settings(max_examples=examples(60), deadline=None)
@given(name=st.sampled_from(NAMES), stages=stage_lists, m=st.integers(1, 8), link=links, ahead=shares_ahead)
def test_both_ways_of_playing_agree_where_they_must(name, stages, m, link, ahead):
    """Ranks that share almost as many processors as there are ranks are as fast as ranks with one each."""
    schedule, costs = random_setting(name, stages, m, link, ahead=ahead)
    assume(len(stages) > 1)
    apart = simulate(schedule, costs)
    shared = simulate(schedule, costs, concurrency=len(stages) - 1e-9)

    assert shared.makespan_s == pytest.approx(apart.makespan_s, rel=1e-6)


@settings(max_examples=examples(60), deadline=None)
@given(name=st.sampled_from(NAMES), stages=stage_lists, m=st.integers(1, 8), link=links)
def test_what_needs_no_gradient_is_as_good_as_done_sooner_and_never_skipped(name, stages, m, link):
    schedule, costs = random_setting(name, stages, m, link, ahead=0.5)
    ahead = simulate(schedule, costs)
    behind = simulate(schedule, replace(costs, ahead_s=None))
    never = simulate(schedule, replace(costs, ahead_s=None, input_s=tuple(each / 2 for each in costs.input_s)))

    assert never.makespan_s - 1e-9 <= ahead.makespan_s <= behind.makespan_s + 1e-9
    assert ahead.compute_s == pytest.approx(behind.compute_s)


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 8), (8, 24)])
def test_to_run_layers_again_lengthens_the_work_of_1f1b_and_not_its_bubble(p, m):
    schedule = build(ScheduleName.ONE_F_ONE_B, Setting(num_ranks=p, num_micro_batches=m))
    costs = equal_shares(p, forward_s=1, input_s=2, weight_s=1)(schedule.routes)

    simulation = simulate(schedule, replace(costs, ahead_s=(1,) * p))

    assert simulation.makespan_s == m * 4 + (p - 1) * 3


def test_a_gradient_that_comes_while_layers_are_run_again_is_not_waited_for():
    text = """
        F0 B0
        F0 B0
    """
    costs = {"forward_s": (1, 1), "input_s": (3, 1), "weight_s": (1, 1), "ahead_s": (2, 0)}
    apart, shared = (played(text, **costs, concurrency=cores) for cores in (None, 1.999))

    # rank 0 is free at 1 and done ahead at 3; its gradient comes at 4
    assert (apart.started_s[0], apart.ended_s[0], apart.ahead_s[0]) == ((0, 2), (1, 6), (0, 2))
    assert shared.makespan_s == pytest.approx(6, abs=0.01)
    kinds = [(span.kind, span.start_s, span.end_s) for span in apart.timeline.stages[0].spans]
    back, wait = SpanKind.BACKWARD_INPUT, SpanKind.RECV
    assert kinds == [(SpanKind.FORWARD, 0, 1), (back, 1, 3), (wait, 3, 4), (back, 4, 6)]


def test_what_is_too_short_for_the_clock_to_tell_is_done_ahead_once():
    costs = {"forward_s": (1e6, 1e6), "input_s": (1, 1), "weight_s": (1, 1), "ahead_s": (1e-20, 1e-20)}

    assert played("F0 B0\nF0 B0", **costs, concurrency=1.5).makespan_s == pytest.approx(2e6 + 4)


@settings(max_examples=examples(60), deadline=None)
@given(name=st.sampled_from(NAMES), stages=stage_lists, m=st.integers(1, 8), concurrency=st.integers(1, 3))
def test_shared_cores_lose_nothing_and_win_nothing(name, stages, m, concurrency):
    """All work is done, k cores do at most k seconds of it a second, and sharing is never faster than not sharing."""
    schedule, costs = random_setting(name, stages, m, Link())
    alone = simulate(schedule, costs)
    shared = simulate(schedule, costs, concurrency=concurrency)

    work = sum(alone.compute_s)
    assert shared.makespan_s >= alone.makespan_s * (1 - 1e-9)
    assert shared.makespan_s >= work / concurrency * (1 - 1e-9)
    assert sum(shared.compute_s) >= work * (1 - 1e-9)


def test_more_cores_than_ranks_are_as_good_as_one_each():
    assert balanced(ScheduleName.ONE_F_ONE_B, 4, 8, concurrency=4).makespan_s == 33


def test_one_core_does_one_thing_after_another():
    assert balanced(ScheduleName.GPIPE, 4, 8, concurrency=1).makespan_s == pytest.approx(4 * 8 * 3)


def test_two_ranks_on_one_core_slow_each_other_down_only_while_both_compute():
    # F0 alone for 1 s; then F1 of rank 0 and F0 of rank 1 share until both end at 3 s; then F1 of
    # rank 1 alone.
    simulation = played(
        "F0 F1 B0 B1\nF0 F1 B0 B1", forward_s=(1, 1), input_s=(0.25, 0.25), weight_s=(0.25, 0.25), concurrency=1
    )

    assert simulation.started_s[0][:2] == (0, 1)
    assert simulation.ended_s[0][:2] == (1, 3)
    assert (simulation.started_s[1][0], simulation.ended_s[1][0]) == (1, 3)
    assert simulation.ended_s[1][1] == 4
    assert simulation.compute_s == (3, 3)
    # Later B0 of rank 0 and B1 of rank 1 share for a second too.
    assert [idle[WaitCause.PROCESSOR] for idle in simulation.idle_s] == [1.5, 1.5]


def test_a_narrow_link_carries_one_message_at_a_time():
    # Rank 0 is done at 1 and 2 s, but each message takes 5 s: the second leaves when the first has
    # passed.
    simulation = played(
        "F0 F1 B0 B1\nF0 F1 B0 B1",
        forward_s=(1, 1),
        input_s=(1, 1),
        weight_s=(0, 0),
        link=Link(latency_s=0.5, message_s=5),
    )

    assert simulation.started_s[1][:2] == (6.5, 11.5)


def test_links_may_differ_edge_by_edge():
    simulation = played(
        "F0 B0\nF0 B0\nF0 B0",
        forward_s=(1, 1, 1),
        input_s=(1, 1, 1),
        weight_s=(0, 0, 0),
        links={(1, 2): Link(latency_s=10)},
    )

    assert [started[0] for started in simulation.started_s] == [0, 1, 12]


def test_without_overlap_a_rank_waits_until_its_message_has_arrived():
    simulation = played(
        "F0 F1 B0 B1\nF0 F1 B0 B1",
        forward_s=(1, 1),
        input_s=(1, 1),
        weight_s=(0, 0),
        link=Link(latency_s=0.5),
        overlap=False,
    )

    assert simulation.started_s[0][:2] == (0, 1.5)
    assert simulation.idle_s[0][WaitCause.SEND] == 1.0
    assert [span.kind for span in simulation.timeline.stages[0].spans[:4]] == [
        SpanKind.FORWARD,
        SpanKind.SEND,
        SpanKind.FORWARD,
        SpanKind.SEND,
    ]


def test_a_turn_within_a_rank_costs_no_message():
    simulation = played(
        "route 0 1 1 0\nF0 F0.1 B0.1 B0\nF0 F0.1 B0.1 B0",
        forward_s=(1, 1, 1, 1),
        input_s=(1, 1, 1, 1),
        weight_s=(0, 0, 0, 0),
        link=Link(latency_s=3),
    )

    assert simulation.started_s[1][:2] == (4, 5)
    assert simulation.started_s[0][1] == 9


def test_a_straggler_slows_its_rank_alone():
    simulation = played("F0 B0\nF0 B0", forward_s=(1, 1), input_s=(1, 1), weight_s=(1, 1), slowdowns=[1.0, 2.0])

    assert simulation.compute_s == (3, 6)
    assert simulation.makespan_s == 9


def test_gradients_are_reduced_while_the_tail_computes():
    # Rank 1 is done at 4 s and has its sums at 9; rank 0 is done at 6 and has its own at 11, when
    # the norm is due.
    simulation = played(
        "F0 B0\nF0 B0",
        forward_s=(1, 1),
        input_s=(1, 1),
        weight_s=(1, 1),
        reduction_s=[5, 5],
        barrier_s=0.5,
        optimizer_s=[2, 1],
    )

    assert simulation.makespan_s == 6
    assert simulation.reduced_s == (11, 9)
    assert simulation.step_s == 13.5
    assert [span.kind for span in simulation.timeline.stages[1].spans[-2:]] == [SpanKind.OPTIMIZER, SpanKind.IDLE]


def test_updates_of_an_asynchronous_schedule_take_their_time_in_place():
    simulation = played("F0@0 B0@0 O1 F1@1 B1@1 O2", forward_s=(1,), input_s=(1,), weight_s=(1,), optimizer_s=[0.5])

    assert simulation.started_s[0] == (0, 1, 3, 3.5, 4.5, 6.5)
    assert simulation.step_s == simulation.makespan_s == 7


def test_memory_over_time_peaks_where_the_list_says():
    simulation = balanced(ScheduleName.ONE_F_ONE_B, 4, 8)

    assert simulation.activations(3)[:4] == ((3, 1.0), (6, 0.0), (6, 1.0), (9, 0.0))
    peaks = tuple(max(held for _, held in simulation.activations(rank)) for rank in range(4))
    assert peaks == peak_activations(simulation.schedule) == (4, 3, 2, 1)


def test_waits_say_what_they_wait_for():
    first, last = balanced(ScheduleName.ONE_F_ONE_B, 2, 2).timeline.stages

    assert [(span.kind, span.start_s, span.end_s, span.cause) for span in first.spans] == [
        (SpanKind.FORWARD, 0, 1, None),
        (SpanKind.FORWARD, 1, 2, None),
        (SpanKind.RECV, 2, 4, "warm-up"),
        (SpanKind.BACKWARD_INPUT, 4, 6, None),
        (SpanKind.RECV, 6, 7, "cool-down"),
        (SpanKind.BACKWARD_INPUT, 7, 9, None),
    ]
    assert [(span.kind, span.cause) for span in last.spans] == [
        (SpanKind.RECV, "warm-up"),
        (SpanKind.FORWARD, None),
        (SpanKind.BACKWARD_INPUT, None),
        (SpanKind.FORWARD, None),
        (SpanKind.BACKWARD_INPUT, None),
        (SpanKind.IDLE, "barrier"),
    ]
    assert all(span.kind in COMPUTE or span.cause for stage in (first, last) for span in stage.spans)


@pytest.mark.parametrize(
    ("work_s", "concurrency", "expected"),
    [((1, 3), None, 3), ((1, 3), 2, 3), ((1, 3), 1, 4), ((2, 2, 2, 2), 2, 4), ((1, 1, 4), 2, 4.5)],
)
def test_work_started_together_ends_when_the_cores_are_done(work_s, concurrency, expected):
    assert shared_seconds(work_s, concurrency) == pytest.approx(expected)


def test_costs_of_another_number_of_ranks_are_refused():
    with pytest.raises(ScheduleError, match="costs of 2 ranks are given for 3; give one for each rank"):
        shares(forward_s=[1, 1], input_s=[1, 1], weight_s=[1, 1])(((0, 1, 2),))


def test_a_large_pipeline_is_simulated_in_well_under_a_second():
    schedule = build(ScheduleName.ONE_F_ONE_B, Setting(num_ranks=64, num_micro_batches=512))
    costs = equal_shares(64)(schedule.routes)
    began = time.process_time()
    simulation = simulate(schedule, costs)

    assert simulation.makespan_s == 3 * (512 + 63)
    assert time.process_time() - began < 1  # of processor time: a busy machine does not count
