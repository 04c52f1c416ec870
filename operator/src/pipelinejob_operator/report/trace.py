"""Timelines as a Chrome trace, for https://ui.perfetto.dev or chrome://tracing. Pure.

A process for each replica, predicted and measured apart, and in it a track for each rank; arrows
follow each micro-batch along its route, forwards and back, to the same rank where the route turns
round on it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob.schedules.actions import Schedule
from pipelinejob_operator.report.marks import Mark, row
from pipelinejob_operator.report.numbers import seconds

_US = 1e6
# Names of Chrome's own palette.
_COLOURS = {
    SpanKind.FORWARD: "thread_state_running",
    SpanKind.BACKWARD_INPUT: "rail_response",
    SpanKind.BACKWARD_WEIGHT: "rail_animation",
    SpanKind.OPTIMIZER: "rail_load",
    SpanKind.SEND: "yellow",
    SpanKind.RECV: "grey",
    SpanKind.IDLE: "grey",
    SpanKind.DATA: "olive",
    SpanKind.CHECKPOINT: "black",
    SpanKind.EVALUATION: "olive",
}
_SHORTLY_S = 1e-6  # far more than the nanosecond to which viewers round
_MEASURED_PID = 1000  # predicted processes count from 0


def chrome_trace(predicted: Timeline, measured: Timeline, schedule: Schedule) -> bytes:
    """Return both timelines of a schedule as one trace, in JSON."""
    events = [*_process_events(predicted, schedule, 0), *_process_events(measured, schedule, _MEASURED_PID)]
    return orjson.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def offsets(stages: Sequence[StageTimeline]) -> dict[tuple[int, int, int], float]:
    """Return the start of every (replica, stage, step) on one axis, in seconds from the first.

    By the shared clock where the steps carry it; otherwise step after step, every rank's step
    starting together.
    """
    identities = {(each.replica, each.stage, each.step): each for each in stages}
    if stages and all(each.started is not None for each in stages):
        first = min(each.started or 0.0 for each in stages)
        return {identity: (each.started or 0.0) - first for identity, each in identities.items()}
    starts: dict[int, float] = {}
    now = 0.0
    for step in sorted({each.step for each in stages}):
        starts[step] = now
        now += max((each.spans[-1].end_s for each in stages if each.step == step and each.spans), default=0.0)
    return {identity: starts[each.step] for identity, each in identities.items()}


def _process_events(timeline: Timeline, schedule: Schedule, first_pid: int) -> Iterator[dict[str, Any]]:
    starts = offsets(timeline.stages)
    for replica in sorted({each.replica for each in timeline.stages}):
        yield _name("process_name", first_pid + replica, 0, f"{timeline.source}, replica {replica}")
    for rank in sorted({(each.replica, each.stage) for each in timeline.stages}):
        yield _name("thread_name", first_pid + rank[0], rank[1], f"stage {rank[1]}")
    for each in timeline.stages:
        start = starts[each.replica, each.stage, each.step]
        drawn = row(each, f"stage {each.stage}", write=seconds, schedule=schedule)
        for span, mark in zip(each.spans, drawn.marks, strict=True):
            yield _event(each, span, mark, first_pid + each.replica, start)
    yield from _arrows(timeline, schedule, first_pid, starts)


def _event(stage: StageTimeline, span: Span, mark: Mark, pid: int, start_s: float) -> dict[str, Any]:
    arguments: dict[str, Any] = {"step": stage.step, "kind": span.kind.value}
    if span.micro_batch is not None:
        arguments["microBatch"] = span.micro_batch
    if span.chunk is not None:
        arguments["chunk"] = span.chunk
    if span.cause:
        arguments["cause"] = span.cause
    return {
        "ph": "X",
        "pid": pid,
        "tid": stage.stage,
        "name": mark.labels[0] if mark.labels else mark.look.name,
        "cat": span.kind.value,
        "cname": _COLOURS[span.kind],
        "ts": (start_s + span.start_s) * _US,
        "dur": (span.end_s - span.start_s) * _US,
        "args": arguments,
    }


def _arrows(
    timeline: Timeline, schedule: Schedule, first_pid: int, starts: dict[tuple[int, int, int], float]
) -> Iterator[dict[str, Any]]:
    """Yield an arrow for each message, from the span that sends it to the one that receives it.

    The arrow starts within its span, as a slice does not hold its own end: an arrow that began
    there would hang on what comes next, or on nothing.
    """
    found: defaultdict[tuple[int, int], dict[_Pass, _Moment]] = defaultdict(dict)
    for each in timeline.stages:
        start = starts[each.replica, each.stage, each.step]
        for span in each.spans:
            if span.kind in _PASSES and span.micro_batch is not None and span.micro_batch < schedule.num_micro_batches:
                stage = schedule.stages_of[schedule.route_of[span.micro_batch]][each.stage][span.chunk or 0]
                moment = _Moment(each.stage, start + span.start_s, start + span.end_s)
                found[each.replica, each.step][_Pass(span.kind, span.micro_batch, stage)] = moment
    for (replica, step), passes in found.items():
        for made, sent in passes.items():
            taken = passes.get(made._replace(stage=made.stage + (1 if made.kind is SpanKind.FORWARD else -1)))
            if taken is not None:
                yield from _arrow(made, sent, taken, step=step, pid=first_pid + replica)


_PASSES = frozenset({SpanKind.FORWARD, SpanKind.BACKWARD_INPUT})


class _Pass(NamedTuple):
    """One pass of a micro-batch through a stage of its route."""

    kind: SpanKind
    micro_batch: int
    stage: int


class _Moment(NamedTuple):
    """Where and when a pass ran."""

    rank: int
    start_s: float
    end_s: float

    @property
    def shortly_before_its_end_s(self) -> float:
        """A time just before the end that is still within the span."""
        return self.end_s - min(_SHORTLY_S, (self.end_s - self.start_s) / 2)


def _arrow(made: _Pass, sent: _Moment, taken: _Moment, *, step: int, pid: int) -> Iterator[dict[str, Any]]:
    common = {
        "cat": "message",
        "name": "activation" if made.kind is SpanKind.FORWARD else "gradient",
        "id": f"{pid}.{step}.{made.stage}.{made.kind.value}.{made.micro_batch}",
        "pid": pid,
    }
    yield {**common, "ph": "s", "tid": sent.rank, "ts": sent.shortly_before_its_end_s * _US}
    yield {**common, "ph": "f", "bp": "e", "tid": taken.rank, "ts": taken.start_s * _US}


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
