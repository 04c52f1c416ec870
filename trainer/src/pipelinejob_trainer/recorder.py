"""Where a rank's time goes: at any moment it is in exactly one state, and each stretch of a state becomes a span.

Recording is switching: the end of one span is the start of the next, so every second of a step is in exactly one of
them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelinejob.timeline import Span, SpanKind, StageTimeline


@dataclass(frozen=True, slots=True)
class State:
    """What a rank is doing; a span without its times."""

    kind: SpanKind
    micro_batch: int | None = None
    cause: str | None = None
    chunk: int | None = None


IDLE = State(SpanKind.IDLE)


class Clock(Protocol):
    """Marks moments now, tells the seconds between them later."""

    def mark(self) -> object:
        """Mark this moment."""

    def seconds(self, start: object, end: object) -> float | None:
        """Give the seconds between two marks; None while the device has not come to the second."""


class ProcessorClock:
    """The clock of a stage on a CPU, where a call returns when its work is done."""

    def mark(self) -> object:
        return time.perf_counter_ns()

    def seconds(self, start: object, end: object) -> float | None:
        assert isinstance(start, int)
        assert isinstance(end, int)
        return (end - start) / 1e9


class CudaClock:
    """The clock of a stage on a GPU: events on the stream that computes; nothing here ever waits for the device."""

    def mark(self) -> object:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it untyped
        event.record()
        return event

    def seconds(self, start: object, end: object) -> float | None:
        assert isinstance(start, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        return start.elapsed_time(end) / 1000 if end.query() else None  # type: ignore[no-untyped-call] # as above


@dataclass(slots=True)
class _Step:
    """The marks of one step: state i lasted from mark i to mark i + 1."""

    number: int
    states: list[State]
    marks: list[object]
    started: float  # seconds since the epoch


class Recorder:
    """Records what this rank does, as spans."""

    def __init__(self, *, replica: int, stage: int, device: torch.device) -> None:
        self._replica = replica
        self._stage = stage
        self._clock: Clock = ProcessorClock() if device.type == "cpu" else CudaClock()
        self._step: _Step | None = None
        self._finished: list[_Step] = []

    def begin_step(self, number: int) -> None:
        """Name the step that is being recorded; the first call starts the record.

        A step starts where the one before it ended, so what is done between `finish_step` and this counts too.
        """
        if self._step is None:
            self._step = _Step(number, [IDLE], [self._clock.mark()], time.time())
        self._step.number = number

    def restart(self) -> None:
        """Forget what has been recorded of the running step: the record starts anew with the next `begin_step`."""
        self._step = None

    def switch(self, state: State) -> None:
        """End the running span; start one of this state."""
        step = self._step
        assert step is not None, "begin_step comes first"
        step.marks.append(self._clock.mark())
        step.states.append(state)

    @contextmanager
    def span(self, kind: SpanKind, *, micro_batch: int | None = None, cause: str | None = None) -> Iterator[None]:
        """Record what is done inside; afterwards go on with what was being recorded before."""
        assert self._step is not None, "begin_step comes first"
        outer = self._step.states[-1]
        self.switch(State(kind, micro_batch, cause))
        try:
            yield
        finally:
            self.switch(outer)

    def finish_step(self) -> StageTimeline | None:
        """End the step; give the newest timeline that is known.

        On a CPU that is this step's. On a GPU, whose events are read a step later, it is an earlier one's or, at
        first, None.
        """
        step = self._step
        assert step is not None, "begin_step comes first"
        step.marks.append(self._clock.mark())
        self._finished.append(step)
        self._step = _Step(step.number + 1, [IDLE], [step.marks[-1]], time.time())
        return self._oldest_known()

    def _oldest_known(self) -> StageTimeline | None:
        step = self._finished[0]
        if self._clock.seconds(step.marks[0], step.marks[-1]) is None:
            return None
        del self._finished[0]
        return StageTimeline(
            replica=self._replica,
            stage=self._stage,
            step=step.number,
            started=step.started,
            spans=self._spans(step),
        )

    def _spans(self, step: _Step) -> tuple[Span, ...]:
        first = step.marks[0]
        spans = []
        for state, start, end in zip(step.states, step.marks, step.marks[1:], strict=False):
            start_s, end_s = self._clock.seconds(first, start), self._clock.seconds(first, end)
            assert start_s is not None, "the step's last mark has passed, so all have"
            assert end_s is not None, "the step's last mark has passed, so all have"
            if end_s > start_s:
                spans.append(
                    Span(
                        kind=state.kind,
                        start_s=start_s,
                        end_s=end_s,
                        micro_batch=state.micro_batch,
                        chunk=state.chunk,
                        cause=state.cause,
                    )
                )
        return tuple(spans)
