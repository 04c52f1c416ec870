"""The simulator against closed forms, published numbers, and what must hold of every simulation."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.schedule import build, parse
from pipelinejob.simulate import Link, shared_seconds, simulate
from pipelinejob.spec import ScheduleName
from pipelinejob.timeline import COMPUTE, SpanKind, bubble_ratio

seconds = st.floats(0.001, 10)


def balanced(name, p, m, *, forward_s=1.0, backward_s=2.0, **others):
    return simulate(build(name, p, m), forward_s=[forward_s] * p, backward_s=[backward_s] * p, **others)


@pytest.mark.parametrize("name", ScheduleName)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 8), (2, 1), (4, 2), (4, 8), (4, 32), (8, 32), (16, 5)])
def test_a_balanced_pipeline_has_the_bubble_of_the_papers(name, p, m):
    simulation = balanced(name, p, m)

    assert simulation.makespan_s == 3 * (m + p - 1)
    assert simulation.bubble_ratios == pytest.approx([(p - 1) / (m + p - 1)] * p, abs=1e-12)


# Zero Bubble Pipeline Parallelism (Qi et al. 2024, arXiv 2401.10241), the 1F1B column of its table of bubble rates:
# times of one stage in milliseconds, W counted into the backward pass, and the rate over the longest span of a stage.
ZERO_BUBBLE_TABLE = [
    (8, 24, 18.522, 18.086, 9.337, 0.601, 0.2431),
    (8, 32, 18.513, 18.086, 9.331, 0.626, 0.1985),
    (8, 64, 18.546, 18.097, 9.321, 0.762, 0.1240),
    (8, 24, 29.718, 29.444, 19.927, 0.527, 0.2347),
    (8, 32, 29.802, 29.428, 19.530, 0.577, 0.1898),
    (8, 64, 29.935, 29.621, 19.388, 0.535, 0.1091),
    (16, 48, 11.347, 11.248, 8.132, 0.377, 0.2552),
    (16, 64, 11.307, 11.254, 8.101, 0.379, 0.2082),
    (16, 128, 11.325, 11.308, 8.109, 0.378, 0.1251),
    (32, 96, 10.419, 10.207, 7.715, 0.408, 0.2646),
    (32, 128, 10.408, 10.204, 7.703, 0.408, 0.2168),
    (32, 256, 10.402, 10.248, 7.698, 0.460, 0.1352),
]


@pytest.mark.parametrize("row", ZERO_BUBBLE_TABLE)
def test_1f1b_with_communication_has_the_published_bubble_rate(row):
    p, m, f, b, w, c, rate = row
    schedule = build(ScheduleName.ONE_F_ONE_B, p, m)
    simulation = simulate(schedule, forward_s=[f] * p, backward_s=[b + w] * p, links=[Link(latency_s=c)] * (p - 1))

    longest = max(ended[-1] - began[0] for began, ended in zip(simulation.started_s, simulation.ended_s, strict=True))
    assert round((longest - m * (f + b + w)) / longest, 4) == rate


@settings(max_examples=60)
@given(
    name=st.sampled_from(ScheduleName),
    stages=st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6),
    m=st.integers(1, 8),
    link=st.builds(Link, latency_s=st.floats(0, 2), message_s=st.floats(0, 2)),
    concurrency=st.sampled_from([None, 1, 2, 3]),
)
def test_every_second_of_every_stage_is_in_exactly_one_span(name, stages, m, link, concurrency):
    p = len(stages)
    simulation = simulate(
        build(name, p, m),
        forward_s=[f for f, _ in stages],
        backward_s=[b for _, b in stages],
        links=[link] * (p - 1),
        concurrency=concurrency,
    )

    for stage, ratio in zip(simulation.timeline.stages, simulation.bubble_ratios, strict=True):
        assert stage.spans[0].start_s == 0
        assert stage.spans[-1].end_s == simulation.makespan_s
        assert all(one.end_s == other.start_s for one, other in zip(stage.spans, stage.spans[1:], strict=False))
        assert sum(span.kind in COMPUTE for span in stage.spans) == 2 * m
        assert all((span.cause is None) == (span.kind in COMPUTE) for span in stage.spans)
        assert bubble_ratio(stage.spans) == pytest.approx(ratio, abs=1e-9)


@settings(max_examples=60)
@given(
    name=st.sampled_from(ScheduleName),
    stages=st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6),
    m=st.integers(1, 8),
    concurrency=st.integers(1, 3),
)
def test_shared_cores_lose_nothing_and_win_nothing(name, stages, m, concurrency):
    """All work is done, k cores do at most k seconds of it a second, and sharing is never faster than not sharing."""
    costs = {"forward_s": [f for f, _ in stages], "backward_s": [b for _, b in stages]}
    alone = simulate(build(name, len(stages), m), **costs)
    shared = simulate(build(name, len(stages), m), **costs, concurrency=concurrency)

    work = m * sum(f + b for f, b in stages)
    assert shared.makespan_s >= alone.makespan_s * (1 - 1e-9)
    assert shared.makespan_s >= work / concurrency * (1 - 1e-9)
    assert sum(shared.compute_s) >= work * (1 - 1e-9)


def test_more_cores_than_stages_are_as_good_as_one_each():
    assert balanced(ScheduleName.ONE_F_ONE_B, 4, 8, concurrency=4).makespan_s == 33


def test_one_core_does_one_thing_after_another():
    assert balanced(ScheduleName.GPIPE, 4, 8, concurrency=1).makespan_s == pytest.approx(4 * 8 * 3)


def test_two_stages_on_one_core_slow_each_other_down_only_while_both_compute():
    # F0 alone for 1 s; then F1 of stage 0 and F0 of stage 1 share until both end at 3 s; then F1 of stage 1 alone.
    simulation = simulate(parse("F0 F1 B0 B1\nF0 F1 B0 B1"), forward_s=[1, 1], backward_s=[0.5, 0.5], concurrency=1)

    assert simulation.started_s[0][:2] == (0, 1)
    assert simulation.ended_s[0][:2] == (1, 3)
    assert (simulation.started_s[1][0], simulation.ended_s[1][0]) == (1, 3)
    assert simulation.ended_s[1][1] == 4


def test_a_narrow_link_carries_one_message_at_a_time():
    # Stage 0 is done at 1 and 2 s, but each message takes 5 s: the second leaves when the first has passed.
    simulation = simulate(
        parse("F0 F1 B0 B1\nF0 F1 B0 B1"),
        forward_s=[1, 1],
        backward_s=[1, 1],
        links=[Link(latency_s=0.5, message_s=5)],
    )

    assert simulation.started_s[1][:2] == (6.5, 11.5)


def test_waits_say_what_they_wait_for():
    first, last = balanced(ScheduleName.ONE_F_ONE_B, 2, 2).timeline.stages

    assert [(span.kind, span.start_s, span.end_s, span.cause) for span in first.spans] == [
        (SpanKind.FORWARD, 0, 1, None),
        (SpanKind.FORWARD, 1, 2, None),
        (SpanKind.RECV, 2, 4, "warm-up"),
        (SpanKind.BACKWARD_INPUT, 4, 6, None),
        (SpanKind.RECV, 6, 7, "drain"),
        (SpanKind.BACKWARD_INPUT, 7, 9, None),
    ]
    assert [(span.kind, span.cause) for span in last.spans] == [
        (SpanKind.RECV, "warm-up"),
        (SpanKind.FORWARD, None),
        (SpanKind.BACKWARD_INPUT, None),
        (SpanKind.FORWARD, None),
        (SpanKind.BACKWARD_INPUT, None),
        (SpanKind.IDLE, "drain"),
    ]


@pytest.mark.parametrize(
    ("work_s", "concurrency", "expected"),
    [((1, 3), None, 3), ((1, 3), 2, 3), ((1, 3), 1, 4), ((2, 2, 2, 2), 2, 4), ((1, 1, 4), 2, 4.5)],
)
def test_work_started_together_ends_when_the_cores_are_done(work_s, concurrency, expected):
    assert shared_seconds(work_s, concurrency) == pytest.approx(expected)


def test_a_large_pipeline_is_simulated_in_seconds():
    began = time.process_time()
    simulation = balanced(ScheduleName.ONE_F_ONE_B, 64, 512)

    assert simulation.makespan_s == 3 * (512 + 63)
    assert time.process_time() - began < 5
