"""Spans of work on stages, planned or measured: one type for both, so that plan and truth can be laid side by side."""

from enum import StrEnum

from pipelinejob.base.values import Value


class SpanKind(StrEnum):
    """What a stage's second was spent on. Every second of a rank's step is in exactly one span."""

    FORWARD = "forward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
    SEND = "send"  # blocked on a send
    RECV = "recv"  # blocked on a receive
    OPTIMIZER = "optimizer"
    DATA = "data"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"
    IDLE = "idle"  # waiting for the other stages at the end of a step, or for no reason of the above


# Where ranks share processors, a span of these is the processor's time, and what a rank waits for
# one comes before it.
COMPUTE = frozenset({SpanKind.FORWARD, SpanKind.BACKWARD_INPUT, SpanKind.BACKWARD_WEIGHT})
WAITING = frozenset({SpanKind.SEND, SpanKind.RECV, SpanKind.IDLE})


class Span(Value):
    """One stretch of one stage's time.

    `start_s` and `end_s` count from the step's start. A full backward pass is one BACKWARD_INPUT
    span (it includes the weight gradient); schedules that split it have both kinds. `cause` names
    what a waiting span waited for, as `schedules.causes.WaitCause` has it.
    """

    kind: SpanKind
    start_s: float
    end_s: float
    micro_batch: int | None = None
    chunk: int | None = None  # of the rank, where an action ran on one
    cause: str | None = None


class StageTimeline(Value):
    """One rank's spans of one step, in order.

    `started` is the step's start in seconds since the epoch, where it is known: it lines up the
    ranks of one machine, whose clock they share.
    """

    replica: int = 0
    stage: int
    step: int
    started: float | None = None
    spans: tuple[Span, ...]


class Timeline(Value):
    """One or several ranks' spans. `source` says whether they were `measured` or are a `predicted` plan."""

    source: str
    stages: tuple[StageTimeline, ...]


def bubble_ratio(spans: tuple[Span, ...]) -> float:
    """Return the share of the schedule's time that a stage spent waiting: waiting / (waiting + compute).

    Optimiser, data, checkpoint and evaluation time belong to no schedule and count on neither
    side, so that a balanced pipeline without communication has (p-1)/(m+p-1) under GPipe and 1F1B.
    """
    compute = sum(span.end_s - span.start_s for span in spans if span.kind in COMPUTE)
    waiting = sum(span.end_s - span.start_s for span in spans if span.kind in WAITING)
    return waiting / (waiting + compute) if waiting + compute else 0.0
