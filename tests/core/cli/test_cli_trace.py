"""The trace of a run: a process for each source, a track for each stage, an arrow for each message."""

import json

import pytest

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob_operator.report.trace import chrome_trace, offsets
from support.plans import run_samples
from support.plans.report_pages import NOTHING


def test_the_trace_has_a_process_for_each_source_and_a_track_for_each_stage() -> None:
    events = traced(run_samples.predicted(), run_samples.measured())

    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"predicted, replica 0", "measured, replica 0", "stage 0", "stage 1", "stage 2", "stage 3"}
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 for event in spans)
    assert "F0" in {event["name"] for event in spans}


def traced(predicted: Timeline, measured: Timeline, name: str = "1F1B") -> list[dict]:
    return json.loads(chrome_trace(predicted, measured, run_samples.schedule(name)))["traceEvents"]


@pytest.mark.parametrize(("name", "num_stages"), [("1F1B", 4), ("Interleaved1F1B", 8), ("ZB-V", 8), ("DualPipe", 4)])
def test_every_arrow_of_the_trace_follows_a_micro_batch_to_the_next_stage_of_its_route(
    name: str, num_stages: int
) -> None:
    events = traced(run_samples.predicted(name), NOTHING, name)

    sent = {event["id"]: event for event in events if event["ph"] == "s"}
    taken = {event["id"]: event for event in events if event["ph"] == "f"}
    assert sent.keys() == taken.keys()
    assert len(sent) == 2 * (num_stages - 1) * 8
    assert all(taken[each]["ts"] >= sent[each]["ts"] - 1e-6 for each in sent)


def test_a_v_hands_on_within_its_last_rank_and_a_loop_from_the_last_to_the_first() -> None:
    def turns(name: str) -> set[tuple[int, int]]:
        events = traced(run_samples.predicted(name), NOTHING, name)
        sent = {event["id"]: event["tid"] for event in events if event["ph"] == "s" and event["name"] == "activation"}
        return {(sent[event["id"]], event["tid"]) for event in events if event["ph"] == "f" and event["id"] in sent}

    assert turns("ZB-V") == {(0, 1), (1, 2), (2, 3), (3, 3), (3, 2), (2, 1), (1, 0)}
    assert turns("Interleaved1F1B") == {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert turns("Chimera") == {(0, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 0)}


def test_steps_line_up_by_their_common_clock_or_else_end_to_end() -> None:
    def step(stage: int, number: int, started: float | None) -> StageTimeline:
        spans = (Span(kind=SpanKind.FORWARD, start_s=0, end_s=2),)
        return StageTimeline(stage=stage, step=number, started=started, spans=spans)

    clocked = [step(0, 1, 100.0), step(1, 1, 100.5), step(0, 2, 102.0)]
    unclocked = [step(0, 1, None), step(0, 2, None)]

    assert offsets(clocked) == {(0, 0, 1): 0.0, (0, 1, 1): 0.5, (0, 0, 2): 2.0}
    assert offsets(unclocked) == {(0, 0, 1): 0.0, (0, 0, 2): 2.0}


def test_an_arrow_begins_within_the_span_that_sends() -> None:
    events = traced(run_samples.predicted(), run_samples.measured())

    spans = {}
    for event in events:
        if event["ph"] == "X":
            spans.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"], event))
    for arrow in (event for event in events if event["ph"] == "s"):
        (sending,) = (span for start, end, span in spans[arrow["pid"], arrow["tid"]] if start < arrow["ts"] < end - 0.1)
        assert sending["cat"] == ("forward" if arrow["name"] == "activation" else "backward_input")
        assert f".{sending['args']['microBatch']}" in arrow["id"][-3:]
