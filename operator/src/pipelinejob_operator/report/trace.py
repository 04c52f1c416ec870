"""Timelines as a Chrome trace, for https://ui.perfetto.dev or chrome://tracing. Pure: timelines in, JSON out.

A process for each replica, predicted and measured apart, and in it a track for each stage; arrows from a forward to the
next stage's, from a backward to the previous one's.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from pipelinejob.timeline import Span, SpanKind, StageTimeline, Timeline

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
_LETTERS = {SpanKind.FORWARD: "F", SpanKind.BACKWARD_INPUT: "B", SpanKind.BACKWARD_WEIGHT: "W"}
_MEASURED_PID = 1000  # predicted processes count from 0


def chrome_trace(predicted: Timeline, measured: Timeline) -> bytes:
    """Write both timelines as one trace."""
    events = [*_process_events(predicted, 0), *_process_events(measured, _MEASURED_PID)]
    return orjson.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def offsets(stages: Sequence[StageTimeline]) -> dict[tuple[int, int, int], float]:
    """Give the start of every (replica, stage, step) on one common axis, in seconds from the first.

    By the shared clock where the steps carry it; otherwise step after step, every rank's step starting together.
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


def _process_events(timeline: Timeline, first_pid: int) -> Iterator[dict[str, Any]]:
    starts = offsets(timeline.stages)
    for replica in sorted({each.replica for each in timeline.stages}):
        yield _name("process_name", first_pid + replica, 0, f"{timeline.source}, replica {replica}")
    for rank in sorted({(each.replica, each.stage) for each in timeline.stages}):
        yield _name("thread_name", first_pid + rank[0], rank[1], f"stage {rank[1]}")
    for each in timeline.stages:
        start = starts[each.replica, each.stage, each.step]
        for span in each.spans:
            yield _event(each, span, first_pid + each.replica, start)
    yield from _arrows(timeline, first_pid, starts)


def _event(stage: StageTimeline, span: Span, pid: int, start_s: float) -> dict[str, Any]:
    arguments: dict[str, Any] = {"step": stage.step, "kind": span.kind.value}
    if span.micro_batch is not None:
        arguments["microBatch"] = span.micro_batch
    if span.cause:
        arguments["cause"] = span.cause
    return {
        "ph": "X",
        "pid": pid,
        "tid": stage.stage,
        "name": _label(span),
        "cat": span.kind.value,
        "cname": _COLOURS[span.kind],
        "ts": (start_s + span.start_s) * _US,
        "dur": (span.end_s - span.start_s) * _US,
        "args": arguments,
    }


def _label(span: Span) -> str:
    letter = _LETTERS.get(span.kind)
    if letter and span.micro_batch is not None:
        return f"{letter}{span.micro_batch}"
    return f"{span.kind.value}: {span.cause}" if span.cause else span.kind.value


def _arrows(timeline: Timeline, first_pid: int, starts: dict[tuple[int, int, int], float]) -> Iterator[dict[str, Any]]:
    ends: defaultdict[tuple[int, int, int], dict[tuple[SpanKind, int], Span]] = defaultdict(dict)
    for each in timeline.stages:
        for span in each.spans:
            if span.kind in {SpanKind.FORWARD, SpanKind.BACKWARD_INPUT} and span.micro_batch is not None:
                ends[each.replica, each.stage, each.step][span.kind, span.micro_batch] = span
    for (replica, stage, step), spans in ends.items():
        for (kind, micro_batch), span in spans.items():
            other = stage + (1 if kind is SpanKind.FORWARD else -1)
            target = ends.get((replica, other, step), {}).get((kind, micro_batch))
            if target is None:
                continue
            pid = first_pid + replica
            common = {
                "cat": "message",
                "name": "activation" if kind is SpanKind.FORWARD else "gradient",
                "id": f"{pid}.{step}.{stage}.{kind.value}.{micro_batch}",
                "pid": pid,
            }
            sent, taken = starts[replica, stage, step] + span.end_s, starts[replica, other, step] + target.start_s
            yield {**common, "ph": "s", "tid": stage, "ts": sent * _US}
            yield {**common, "ph": "f", "bp": "e", "tid": other, "ts": taken * _US}


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
