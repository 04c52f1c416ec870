"""What a run leaves for people: the summary, the report and the trace, from data alone."""

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

import run_samples
from pipelinejob.plan import CostSource
from pipelinejob.status import PipelineJobStatus, State
from pipelinejob.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob_operator.report.charts import seconds, ticks
from pipelinejob_operator.report.html import html_report, typical_step
from pipelinejob_operator.report.summary import RunSummary, seconds_by_cause, summarise
from pipelinejob_operator.report.trace import chrome_trace, offsets


def summary(**changes: object) -> RunSummary:
    made = summarise(
        run_samples.plan(),
        status=run_samples.status(),
        steps=run_samples.steps(),
        predicted=run_samples.predicted(),
        measured=run_samples.measured(),
    )
    return made.model_copy(update=changes)


def page(made: RunSummary | None = None, **changes: object) -> str:
    content = {
        "steps": run_samples.steps(),
        "predicted": run_samples.predicted(),
        "measured": run_samples.measured(),
    }
    return html_report(made or summary(), **{**content, **changes})


def test_the_summary_lays_measured_beside_predicted() -> None:
    made = summary()

    assert (made.steps, made.steps_wanted, made.restarts) == (300, 300, 1)
    assert made.loss_first == pytest.approx(5.5, abs=0.2)
    assert made.loss_last == pytest.approx(2.0, abs=0.2)
    assert made.bubble_ratio.predicted == pytest.approx(3 / 11)
    assert made.bubble_ratio.measured == pytest.approx(0.28, abs=0.02)
    assert made.step_s.measured == pytest.approx(0.155, abs=0.005)
    assert made.tokens_per_s.measured == pytest.approx(4096 / made.step_s.measured)
    assert [stage.first_layer for stage in made.stages] == [0, 3, 5, 7]


def test_a_wait_is_counted_under_its_cause_and_every_second_once() -> None:
    spans = (
        Span(kind=SpanKind.RECV, start_s=0, end_s=1, cause="warm-up"),
        Span(kind=SpanKind.FORWARD, start_s=1, end_s=3),
        Span(kind=SpanKind.IDLE, start_s=3, end_s=4),
    )

    assert seconds_by_cause([StageTimeline(stage=0, step=1, spans=spans)]) == {"warm-up": 1, "forward": 2, "idle": 1}


def test_a_run_without_a_step_still_has_a_summary_and_a_report() -> None:
    nothing = Timeline(source="measured", stages=())
    made = summarise(
        run_samples.plan(),
        status=PipelineJobStatus(state=State.FAILED),
        steps=(),
        predicted=run_samples.predicted(),
        measured=nothing,
    )

    assert made.loss_last is None
    assert made.step_s.measured is None
    written = page(made, steps=(), measured=nothing)
    assert "No step was completed." in written
    assert "predicted; not measured" in written


def test_the_summary_survives_json() -> None:
    made = summary()

    assert RunSummary.model_validate(made.dump()) == made


def test_the_report_needs_nothing_from_outside() -> None:
    written = page()

    assert "http://" not in written
    assert "https://" not in written
    assert "url(" not in written
    assert "@import" not in written


def test_the_report_escapes_what_it_shows() -> None:
    evil = "<script>alert(1)</script>"

    written = page(summary(name=evil, message=evil, state="Failed"), sample=evil)

    assert evil not in written
    assert written.count("&lt;script&gt;") >= 3


def test_every_element_of_the_report_is_closed_and_its_pictures_are_named() -> None:
    class Checker(HTMLParser):
        void = frozenset({"meta"})

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.pictures = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "svg":
                self.pictures += 1
                assert dict(attrs).get("aria-label")
            if tag not in self.void:
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(page(sample="def f():\n    return 1"))
    checker.close()

    assert checker.open == []
    assert checker.pictures == 4


def test_each_picture_is_well_formed_xml_and_both_timelines_share_a_scale() -> None:
    written = page()
    pictures = [f"<svg{rest.split('</svg>')[0]}</svg>" for rest in written.split("<svg")[1:]]

    planned, seen = (ET.fromstring(picture) for picture in pictures[1:3])
    scales = [[text.text for text in picture.iter("text") if "ms" in (text.text or "")] for picture in (planned, seen)]
    assert scales[0] == scales[1]
    assert scales[0]


def test_numbers_say_whether_they_are_measured_or_predicted() -> None:
    written = page()

    assert written.count("measured; predicted") == 3
    assert "Predicted, before the run" in written
    assert "Measured, step 299" in written


def test_stages_that_shared_processors_are_said_to_have() -> None:
    assert "4 stages shared 2 processors" in page(summary(concurrency=2))
    assert summary(concurrency=4).crowding is None
    assert "shared" not in page()


def test_the_typical_step_is_the_median_of_the_steps_that_all_ranks_kept() -> None:
    whole = run_samples.measured(3)
    torn = Timeline(source="measured", stages=whole.stages[:-1])

    assert {stage.step for stage in typical_step(whole)} == {299}
    assert {stage.step for stage in typical_step(torn)} == {299}
    assert typical_step(Timeline(source="measured", stages=())) == ()


def test_the_trace_has_a_process_for_each_source_and_a_track_for_each_stage() -> None:
    events = json.loads(chrome_trace(run_samples.predicted(), run_samples.measured()))["traceEvents"]

    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"predicted, replica 0", "measured, replica 0", "stage 0", "stage 1", "stage 2", "stage 3"}
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 for event in spans)
    assert "F0" in {event["name"] for event in spans}


def test_every_arrow_of_the_trace_ends_where_another_stage_took_the_message() -> None:
    events = json.loads(chrome_trace(run_samples.predicted(), Timeline(source="measured", stages=())))["traceEvents"]

    sent = {event["id"]: event for event in events if event["ph"] == "s"}
    taken = {event["id"]: event for event in events if event["ph"] == "f"}
    assert sent.keys() == taken.keys()
    assert len(sent) == 2 * 3 * 8
    assert all(taken[each]["ts"] >= sent[each]["ts"] - 1e-6 for each in sent)


def test_steps_line_up_by_their_common_clock_or_else_end_to_end() -> None:
    def step(stage: int, number: int, started: float | None) -> StageTimeline:
        spans = (Span(kind=SpanKind.FORWARD, start_s=0, end_s=2),)
        return StageTimeline(stage=stage, step=number, started=started, spans=spans)

    clocked = [step(0, 1, 100.0), step(1, 1, 100.5), step(0, 2, 102.0)]
    unclocked = [step(0, 1, None), step(0, 2, None)]

    assert offsets(clocked) == {(0, 0, 1): 0.0, (0, 1, 1): 0.5, (0, 0, 2): 2.0}
    assert offsets(unclocked) == {(0, 0, 1): 0.0, (0, 0, 2): 2.0}


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "–"), (0.0000042, "4 µs"), (0.0123, "12.3 ms"), (1.234, "1.23 s"), (312.4, "312 s")],
)
def test_durations_read_well(value: float | None, written: str) -> None:
    assert seconds(value) == written


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 0.152, 8) == [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14]
    assert ticks(3, 3) == [3]


def test_of_layers_of_unknown_cost_no_seconds_and_no_bytes_are_predicted() -> None:
    plan = run_samples.plan()
    unknown = plan.model_copy(update={"prediction": plan.prediction.model_copy(update={"source": CostSource.EQUAL})})
    made = summarise(
        unknown,
        status=run_samples.status(),
        steps=run_samples.steps(),
        predicted=run_samples.predicted(),
        measured=run_samples.measured(),
    )

    written = page(made, predicted=Timeline(source="predicted", stages=()))

    assert (made.step_s.predicted, made.tokens_per_s.predicted) == (None, None)
    assert made.bubble_ratio.predicted == pytest.approx(3 / 11)
    assert {(stage.parameters, stage.memory_bytes.predicted) for stage in made.stages} == {(None, None)}
    assert "no timeline was predicted" in written
    assert written.count("measured; predicted –") == 2
