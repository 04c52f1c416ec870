"""Where a rank's time goes: at any moment it is in exactly one state, and each stretch of a state becomes a span.

Recording is switching: the end of one span is the start of the next, so every second of a step is in exactly one of
them.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

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

    def has_reached(self, mark: object) -> bool:
        """Say whether the device has come to a mark, so that its time is known."""

    def seconds(self, marks: Sequence[object]) -> list[float]:
        """Give the seconds from the first mark to each; the device must have reached them all."""


class ProcessorClock:
    """The clock of a stage on a CPU, where a call returns when its work is done."""

    def mark(self) -> object:
        return time.perf_counter_ns()

    def has_reached(self, _: object) -> bool:
        return True

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        first = marks[0]
        return [(mark - first) / 1e9 for mark in marks]


class CudaClock:
    """The clock of a stage on a GPU: events on the stream that computes; nothing here ever waits for the device."""

    def mark(self) -> object:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it untyped
        event.record()
        return event

    def has_reached(self, mark: Any) -> bool:
        return bool(mark.query())

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        first = marks[0]
        return [first.elapsed_time(mark) / 1000 for mark in marks]


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
        """End the running span; start one of this state. What is in it already goes on."""
        step = self._step
        assert step is not None, "begin_step comes first"
        if step.states[-1] is state:
            return
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
        if not self._clock.has_reached(step.marks[-1]):
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
        return tuple(
            Span(
                kind=state.kind,
                start_s=start_s,
                end_s=end_s,
                micro_batch=state.micro_batch,
                chunk=state.chunk,
                cause=state.cause,
            )
            for state, (start_s, end_s) in zip(step.states, pairwise(self._clock.seconds(step.marks)), strict=True)
            if end_s > start_s
        )
