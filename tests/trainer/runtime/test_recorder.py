"""Spans: every second of a step in exactly one."""

import time

import pytest
import torch

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline
from pipelinejob_trainer.runtime.recorder import Recorder, State

CPU = torch.device("cpu")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder on a clock that goes on by a second each time it is read."""
    seconds = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(seconds) * 1_000_000_000)
    return Recorder(replica=1, stage=2, device=CPU)


def finished(recorder: Recorder) -> StageTimeline:
    timeline = recorder.finish_step()
    assert timeline is not None
    return timeline


def test_a_span_ends_where_the_next_begins(recorder: Recorder) -> None:
    recorder.begin_step(4)
    recorder.switch(State(SpanKind.RECV, 3, "activation", 1))
    recorder.switch(State(SpanKind.FORWARD, 3))

    timeline = finished(recorder)
    assert (timeline.replica, timeline.stage, timeline.step) == (1, 2, 4)
    assert timeline.spans == (
        Span(kind=SpanKind.IDLE, start_s=0, end_s=1),
        Span(kind=SpanKind.RECV, start_s=1, end_s=2, micro_batch=3, cause="activation", chunk=1),
        Span(kind=SpanKind.FORWARD, start_s=2, end_s=3, micro_batch=3),
    )


def test_after_a_span_the_one_around_it_goes_on(recorder: Recorder) -> None:
    recorder.begin_step(1)
    with recorder.span(SpanKind.OPTIMIZER), recorder.span(SpanKind.IDLE, cause="barrier"):
        pass

    kinds = [(span.kind, span.cause) for span in finished(recorder).spans]
    assert kinds == [
        (SpanKind.IDLE, None),
        (SpanKind.OPTIMIZER, None),
        (SpanKind.IDLE, "barrier"),
        (SpanKind.OPTIMIZER, None),
        (SpanKind.IDLE, None),
    ]


def test_a_span_ends_when_what_it_holds_raises(recorder: Recorder) -> None:
    recorder.begin_step(1)
    with pytest.raises(ValueError, match="disk"), recorder.span(SpanKind.CHECKPOINT):
        raise ValueError("disk")

    assert [span.kind for span in finished(recorder).spans] == [SpanKind.IDLE, SpanKind.CHECKPOINT, SpanKind.IDLE]


def test_what_happens_between_two_steps_belongs_to_the_second(recorder: Recorder) -> None:
    recorder.begin_step(1)
    first = finished(recorder)
    with recorder.span(SpanKind.CHECKPOINT):
        pass
    recorder.begin_step(2)
    second = finished(recorder)

    assert (first.step, second.step) == (1, 2)
    assert [span.kind for span in second.spans] == [SpanKind.IDLE, SpanKind.CHECKPOINT, SpanKind.IDLE]
    assert second.spans[0].start_s == 0


def test_a_restarted_record_starts_with_its_next_step(recorder: Recorder) -> None:
    recorder.begin_step(1)
    recorder.switch(State(SpanKind.OPTIMIZER))
    recorder.restart()
    recorder.begin_step(2)

    assert finished(recorder).spans == (Span(kind=SpanKind.IDLE, start_s=0, end_s=1),)


def test_computing_is_counted_by_the_processor_where_ranks_share_some(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, own = iter((0, 1, 4, 9, 10)), iter((0, 1, 4, 6, 6))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(wall) * 1_000_000_000)
    monkeypatch.setattr(time, "thread_time_ns", lambda: next(own) * 1_000_000_000)
    recorder = Recorder(replica=0, stage=0, device=CPU, shares_processors=True)
    recorder.begin_step(1)
    recorder.switch(State(SpanKind.FORWARD, 0, chunk=1))
    recorder.switch(State(SpanKind.BACKWARD_INPUT, 0, chunk=1))
    recorder.switch(State(SpanKind.RECV, 1, "gradient"))

    assert finished(recorder).spans == (
        Span(kind=SpanKind.IDLE, start_s=0, end_s=1),
        Span(kind=SpanKind.FORWARD, start_s=1, end_s=4, micro_batch=0, chunk=1),
        Span(kind=SpanKind.IDLE, start_s=4, end_s=7, micro_batch=0, chunk=1, cause="processor"),
        Span(kind=SpanKind.BACKWARD_INPUT, start_s=7, end_s=9, micro_batch=0, chunk=1),
        Span(kind=SpanKind.RECV, start_s=9, end_s=10, micro_batch=1, cause="gradient"),
    )


def test_a_device_that_lags_gives_its_spans_a_step_later() -> None:
    class LaggingClock:
        """Knows, as CUDA events do, only what the device has come to."""

        def __init__(self) -> None:
            self.marked = self.reached = 0

        def mark(self) -> object:
            self.marked += 1
            return self.marked

        def has_reached(self, mark: object) -> bool:
            return mark <= self.reached

        def seconds(self, marks: list[object]) -> list[float]:
            return [float(mark - marks[0]) for mark in marks]

        def waited_s(self, _begin: object, _end: object) -> float:
            return 0.0

    recorder, clock = Recorder(replica=0, stage=0, device=CPU), LaggingClock()
    recorder._clock = clock
    recorder.begin_step(1)
    assert recorder.finish_step() is None

    clock.reached = clock.marked
    recorder.begin_step(2)

    assert finished(recorder).step == 1
