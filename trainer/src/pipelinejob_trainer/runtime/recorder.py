"""Where a rank's time goes: it is always in exactly one state; each period is a span.

The end of one span is the start of the next, so every second of a step is in exactly one span.
Where ranks share processors, a period of computing is split in two, waiting for a processor and
computing, so that computing is counted alike however the kernel divides the time.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch

from pipelinejob.base.timeline import COMPUTE, Span, SpanKind, StageTimeline
from pipelinejob.schedules.causes import WaitCause


@dataclass(frozen=True, slots=True)
class State:
    """What a rank is doing; a span without its times."""

    kind: SpanKind
    micro_batch: int | None = None
    cause: str | None = None
    chunk: int | None = None


IDLE = State(SpanKind.IDLE)


class Clock(Protocol):
    """Marks moments now, and returns the seconds between them later."""

    def mark(self) -> object:
        """Mark this moment."""

    def has_reached(self, mark: object) -> bool:
        """Return whether the device has reached a mark, so that its time is known."""

    def seconds(self, marks: Sequence[object]) -> list[float]:
        """Return the seconds from the first mark to each; the device must have reached them all."""

    def waited_s(self, begin: object, end: object) -> float:
        """Return the seconds of waiting for a processor between two marks, if known."""


class ProcessorClock:
    """The clock of a stage on a CPU, where a call returns when its work is done."""

    def mark(self) -> object:
        return time.perf_counter_ns()

    def has_reached(self, _: object) -> bool:
        return True

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        first = marks[0]
        return [(mark - first) / 1e9 for mark in marks]

    def waited_s(self, _begin: object, _end: object) -> float:
        return 0.0


_CLOCKS_DIFFER_S = 20e-6  # by so much the two clocks of a rank that never waits may


class SharedProcessorClock:
    """The clock of a stage on a shared processor: wall time and the thread's processor time.

    Passes run on the thread that marks. Time within a pass in which it does not compute counts as
    waiting for a processor.
    """

    def mark(self) -> object:
        return time.perf_counter_ns(), time.thread_time_ns()

    def has_reached(self, _: object) -> bool:
        return True

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        first, _ = marks[0]
        return [(wall - first) / 1e9 for wall, _ in marks]

    def waited_s(self, begin: Any, end: Any) -> float:
        wall_ns, own_ns = (after - before for before, after in zip(begin, end, strict=True))
        waited_s = (wall_ns - own_ns) / 1e9
        return waited_s if waited_s > _CLOCKS_DIFFER_S else 0.0


class CudaClock:
    """The clock of a stage on a GPU: events on the stream that computes.

    Nothing here ever waits for the device.
    """

    def mark(self) -> object:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it untyped
        event.record()
        return event

    def has_reached(self, mark: Any) -> bool:
        return bool(mark.query())

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        first = marks[0]
        return [first.elapsed_time(mark) / 1000 for mark in marks]

    def waited_s(self, _begin: object, _end: object) -> float:
        return 0.0


@dataclass(slots=True)
class _Step:
    """The marks of one step: state i lasted from mark i to mark i + 1."""

    number: int
    states: list[State]
    marks: list[object]
    started: float  # seconds since the epoch


class Recorder:
    """Records what this rank does, as spans.

    `shares_processors`: there are more ranks than processors.
    """

    def __init__(self, *, replica: int, stage: int, device: torch.device, shares_processors: bool = False) -> None:
        self._replica = replica
        self._stage = stage
        self._clock: Clock = _clock_of(device, shares_processors=shares_processors)
        self._step: _Step | None = None
        self._finished: list[_Step] = []

    def begin_step(self, number: int) -> None:
        """Set the step that is being recorded; the first call starts the record.

        A step starts where the one before it ended, so what is done between `finish_step` and this
        counts too.
        """
        if self._step is None:
            self._step = _Step(number, [IDLE], [self._clock.mark()], time.time())
        self._step.number = number

    def restart(self) -> None:
        """Drop the record of the running step: the next `begin_step` starts a new one."""
        self._step = None

    def switch(self, state: State) -> None:
        """End the running span and start one of this state; the same state goes on."""
        step = self._step
        assert step is not None, "begin_step comes first"
        if step.states[-1] is state:
            return
        step.marks.append(self._clock.mark())
        step.states.append(state)

    @contextmanager
    def span(self, kind: SpanKind, *, micro_batch: int | None = None, cause: str | None = None) -> Iterator[None]:
        """Record this state inside; afterwards go on with the state before."""
        assert self._step is not None, "begin_step comes first"
        outer = self._step.states[-1]
        self.switch(State(kind, micro_batch, cause))
        try:
            yield
        finally:
            self.switch(outer)

    def finish_step(self) -> StageTimeline | None:
        """End the step; return the newest timeline that is known.

        On a CPU that is this step's. On a GPU, whose events are read a step later, it is an
        earlier one's or, at first, None.
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
            spans=tuple(self._spans(step)),
        )

    def _spans(self, step: _Step) -> Iterator[Span]:
        moments, marks = pairwise(self._clock.seconds(step.marks)), pairwise(step.marks)
        for state, (start_s, end_s), ends in zip(step.states, moments, marks, strict=True):
            if state.kind in COMPUTE:
                begins_s = min(start_s + self._clock.waited_s(*ends), end_s)
                if begins_s > start_s:
                    yield _span(_waiting_for_processor(state), start_s, begins_s)
            else:
                begins_s = start_s
            if end_s > begins_s:
                yield _span(state, begins_s, end_s)


def _clock_of(device: torch.device, *, shares_processors: bool) -> Clock:
    if device.type != "cpu":
        return CudaClock()
    return SharedProcessorClock() if shares_processors else ProcessorClock()


def _waiting_for_processor(state: State) -> State:
    return replace(state, kind=SpanKind.IDLE, cause=WaitCause.PROCESSOR)


def _span(state: State, start_s: float, end_s: float) -> Span:
    return Span(
        kind=state.kind,
        start_s=start_s,
        end_s=end_s,
        micro_batch=state.micro_batch,
        chunk=state.chunk,
        cause=state.cause,
    )
