"""What a run leaves for people: the summary and the report, from data alone."""

import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob.contract.plan import CostSource
from pipelinejob.scheduler.catalogue import FAMILIES
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.reported.conditions import State
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.report.looks import BACKWARD, INPUT, LOOKS, WEIGHT
from pipelinejob_operator.report.marks import row
from pipelinejob_operator.report.numbers import plain
from pipelinejob_operator.report.pages.run import typical_step
from pipelinejob_operator.report.pictures.gantt import Panel, gantt
from pipelinejob_operator.report.summary import RunSummary, seconds_by_cause, summarise
from support.plans import run_samples
from support.plans.report_pages import NOTHING, page, summary


def test_the_summary_lays_measured_beside_predicted() -> None:
    made = summary()

    assert (made.steps, made.steps_wanted, made.restarts) == (300, 300, 1)
    assert made.loss_first == pytest.approx(5.5, abs=0.2)
    assert made.loss_last == pytest.approx(2.0, abs=0.2)
    assert made.bubble_ratio.predicted == pytest.approx(3 / 11)
    assert made.bubble_ratio.measured == pytest.approx(0.28, abs=0.02)
    assert made.step_s.measured == pytest.approx(0.155, abs=0.005)
    assert made.tokens_per_s.measured == pytest.approx(4096 / made.step_s.measured)
    assert [stage.chunks for stage in made.stages] == [((0, 3),), ((3, 5),), ((5, 7),), ((7, 10),)]


def test_a_wait_is_counted_under_its_cause_and_every_second_once() -> None:
    spans = (
        Span(kind=SpanKind.RECV, start_s=0, end_s=1, cause="warm-up"),
        Span(kind=SpanKind.FORWARD, start_s=1, end_s=3),
        Span(kind=SpanKind.IDLE, start_s=3, end_s=4),
    )

    assert seconds_by_cause([StageTimeline(stage=0, step=1, spans=spans)]) == {"warm-up": 1, "forward": 2, "idle": 1}


def test_a_run_without_a_step_still_has_a_summary_and_a_report() -> None:
    made = summarise(
        run_samples.plan(),
        status=PipelineJobStatus(state=State.FAILED),
        steps=(),
        predicted=run_samples.predicted(),
        measured=NOTHING,
    )

    assert made.loss_last is None
    assert made.step_s.measured is None
    written = page(made, steps=(), measured=NOTHING)
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
    assert checker.pictures == 3  # the loss, the timelines, the bars


def pictures(written: str) -> list[ET.Element]:
    return [ET.fromstring(f"<svg{rest.split('</svg>')[0]}</svg>") for rest in written.split("<svg")[1:]]


def texts(picture: ET.Element) -> list[str]:
    return [element.text or "" for element in picture.iter("text")]


def test_planned_and_measured_stand_above_each_other_on_one_time_axis() -> None:
    _, timelines, _ = pictures(page())

    said = texts(timelines)
    assert said.index("Predicted, before the run") < said.index("Measured, step 299")
    assert [name for name in said if name.startswith("stage ")] == [f"stage {n}" for n in (0, 1, 2, 3)] * 2
    assert [int(tick.split()[0]) for tick in said if tick.endswith(" ms")] == [20, 40, 60, 80, 100, 120, 140]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_schedule_is_reported(name: ScheduleName) -> None:
    written = page(
        predicted=run_samples.predicted(name),
        measured=run_samples.measured(name=name),
        schedule=run_samples.schedule(name),
    )

    drawn = {element.get("class", "").split()[0] for each in pictures(written) for element in each.iter("rect")}
    assert "forward" in drawn
    assert drawn <= {look.key for look in LOOKS.values()} | {"unseen"}
    assert ("weight" in drawn, "input" in drawn) == (run_samples.schedule(name).is_split,) * 2
    assert "<li><i" in written


def test_idle_time_is_named_by_its_causes_in_bars_and_legends() -> None:
    written = page()

    for cause in ("warm-up", "cool-down", "for an activation", "for a gradient", "at the barrier"):
        assert f"waiting: {cause}</li>" in written or f"waiting {cause}</li>" in written
    assert not [old for old in ("upstream", "downstream", "drain") if old in written]


def test_a_split_backward_is_drawn_as_its_halves_and_a_whole_one_as_one() -> None:
    spans = (
        Span(kind=SpanKind.BACKWARD_INPUT, start_s=0, end_s=1, micro_batch=0, chunk=0),
        Span(kind=SpanKind.BACKWARD_INPUT, start_s=1, end_s=2, micro_batch=0, chunk=1),
        Span(kind=SpanKind.BACKWARD_WEIGHT, start_s=2, end_s=3, micro_batch=0, chunk=1),
    )

    marks = row(StageTimeline(stage=0, step=1, spans=spans), "stage 0", write=plain).marks

    assert [mark.look for mark in marks] == [BACKWARD, INPUT, WEIGHT]
    assert [mark.labels[0] for mark in marks] == ["B0", "I0.1", "W0.1"]
    assert [mark.shade for mark in marks] == [0, 1, 1]


def test_directions_are_told_apart_and_a_tip_names_the_stage() -> None:
    schedule = run_samples.schedule("DualPipe")
    (first, *_) = run_samples.predicted("DualPipe").stages

    marks = {
        mark.labels[0]: mark for mark in row(first, "stage 0", write=plain, schedule=schedule).marks if mark.labels
    }

    assert (marks["F0"].shade, marks["F4"].shade) == (0, 1)
    assert "stage 0 of 4" in marks["F0"].tip
    assert "stage 3 of 4" in marks["F4"].tip


def test_an_asynchronous_schedules_actions_show_their_weight_version() -> None:
    schedule = run_samples.schedule("PipeDream")
    (first, *_) = run_samples.predicted("PipeDream").stages

    labels = [mark.labels[0] for mark in row(first, "stage 0", write=plain, schedule=schedule).marks if mark.labels]

    assert labels[:8] == ["F0@0", "F1@0", "F2@0", "F3@0", "B0@0", "O", "F4@1", "B1@0"]


def test_a_chart_of_very_many_actions_is_one_shape_for_each_look_of_a_rank() -> None:
    spans = tuple(
        Span(kind=kind, start_s=2.0 * k + half, end_s=2.0 * k + half + 1, micro_batch=k)
        for k in range(10_000)
        for half, kind in enumerate((SpanKind.FORWARD, SpanKind.BACKWARD_INPUT))
    )
    drawn = row(StageTimeline(stage=0, step=1, spans=spans), "stage 0", write=plain)

    picture = ET.fromstring(gantt([Panel(rows=(drawn,))], span_s=20_000, label="many", write=plain))

    assert [path.get("class") for path in picture.iter("path")] == ["forward", "backward"]
    assert not list(picture.iter("rect"))


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


def test_memory_is_compared_process_with_process_and_tensors_stand_apart() -> None:
    plan = run_samples.plan()
    made = summarise(
        plan,
        status=run_samples.status(),
        steps=run_samples.steps(),
        predicted=run_samples.predicted(),
        measured=run_samples.measured(),
        process_bytes=600 * 2**20,
    )

    assert {stage.tensor_bytes for stage in made.stages} == {40 * 2**20}
    assert {stage.memory_bytes.predicted for stage in made.stages} == {640 * 2**20}
    assert page(made).count('<td class="predicted">40 MiB</td><td class="predicted">640 MiB</td>') == 4


def test_of_a_process_whose_own_memory_is_not_known_nothing_is_predicted_beside_its_peak() -> None:
    made = summary()

    assert {(stage.tensor_bytes, stage.memory_bytes.predicted) for stage in made.stages} == {(40 * 2**20, None)}


def test_on_a_phone_every_chart_keeps_its_size_and_scrolls_in_its_box() -> None:
    written = page()

    assert written.count("<svg") == written.count('<div class="scroll"><div class="chart" style="--full:1076px;') == 3
    assert "@media (max-width: 760px) { .chart { min-width: var(--full); }" in written


def test_nothing_that_is_written_in_a_chart_is_cut_off_by_the_box_that_it_scrolls_in() -> None:
    written = page()

    pictures = [ET.fromstring(f"<svg{rest.split('</svg>')[0]}</svg>") for rest in written.split("<svg")[1:]]
    room_px = {"right": 18, "below": 4}  # the padding of .chart
    assert "padding: 0 18px 4px 0" in written
    for picture in pictures:
        _, _, width, height = map(float, picture.get("viewBox", "").split())
        for text in picture.iter("text"):
            reach = {"start": 1, "middle": 0.5, "end": 0}[text.get("text-anchor", "")] * 6.6 * len(text.text or "")
            assert float(text.get("x", 0)) + reach <= width + room_px["right"], text.text
            assert float(text.get("y", 0)) <= height + room_px["below"], text.text
