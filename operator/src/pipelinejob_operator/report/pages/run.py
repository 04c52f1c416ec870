"""The report of a run: what the template `run.html` is given. Data in, HTML out."""

from collections.abc import Sequence

from pipelinejob.base.timeline import SpanKind, StageTimeline, Timeline
from pipelinejob.contract.plan import CostSource
from pipelinejob.contract.progress import StepRecord
from pipelinejob.schedules.actions import Schedule
from pipelinejob_operator.report.looks import looks_of
from pipelinejob_operator.report.marks import looks_in, row, shades_of
from pipelinejob_operator.report.numbers import seconds
from pipelinejob_operator.report.pages.page import Chart, chart, render
from pipelinejob_operator.report.pictures.charts import Bar, bars, loss_curve
from pipelinejob_operator.report.pictures.gantt import Panel, gantt
from pipelinejob_operator.report.summary import RunSummary, StageSummary
from pipelinejob_operator.report.trace import offsets

_TONES = {"Succeeded": "good", "Failed": "bad"}
_SOURCES = {
    CostSource.PROFILED: "costs profiled here",
    CostSource.ANALYTIC: "counted operations",
    CostSource.EQUAL: "the number of layers alone: nothing else was known of them, so only ratios were predicted",
}


def run_page(
    summary: RunSummary,
    *,
    steps: Sequence[StepRecord],
    predicted: Timeline,
    measured: Timeline,
    schedule: Schedule | None = None,
    sample: str | None = None,
) -> str:
    """Write the whole page; the schedule tells the directions of one with several routes apart."""
    planned = tuple(stage for stage in predicted.stages if stage.replica == 0)
    seen = typical_step(measured)
    return render(
        "run.html",
        run=summary,
        tone=_TONES.get(summary.state, "soft"),
        num_stages=len({stage.stage for stage in summary.stages}),
        num_replicas=_num_replicas(summary),
        loss=chart(loss_curve(steps)) if steps else None,
        timelines=_timelines(planned, seen, schedule),
        is_predicted=bool(planned),
        is_measured=bool(seen),
        spent=_spent(summary),
        source=_SOURCES[summary.cost_source],
        sample=sample,
    )


def _num_replicas(summary: RunSummary) -> int:
    return len({stage.replica for stage in summary.stages})


def _timelines(
    planned: Sequence[StageTimeline], seen: Sequence[StageTimeline], schedule: Schedule | None
) -> Chart | None:
    panels = [_panel("Predicted, before the run", planned, [0.0] * len(planned), schedule)] if planned else []
    if seen:
        starts = offsets(seen)
        ordered = [starts[stage.replica, stage.stage, stage.step] for stage in seen]
        panels.append(_panel(f"Measured, step {seen[0].step}", seen, ordered, schedule))
    if not panels:
        return None
    rows = [row for panel in panels for row in panel.rows]
    span_s = max(row.end_s for row in rows)
    return chart(
        gantt(panels, span_s=span_s, label="Timelines of one step, on one axis", write=seconds),
        looks=looks_in(rows),
        shades=shades_of(schedule) if schedule else {},
    )


def _panel(title: str, stages: Sequence[StageTimeline], starts: Sequence[float], schedule: Schedule | None) -> Panel:
    rows = (
        row(stage, f"stage {stage.stage}", write=seconds, schedule=schedule, start_s=start)
        for stage, start in zip(stages, starts, strict=True)
    )
    return Panel(title=title, rows=tuple(rows))


def typical_step(measured: Timeline) -> tuple[StageTimeline, ...]:
    """Return replica 0's ranks in the step of median length, of those that all kept.

    Steps that wrote a checkpoint or evaluated count only where there are no others.
    """
    stages = [stage for stage in measured.stages if stage.replica == 0 and stage.spans]
    numbers = {stage.stage for stage in stages}
    by_step = {step: sorted((s for s in stages if s.step == step), key=lambda s: s.stage)
               for step in {stage.step for stage in stages}}  # fmt: skip
    whole = [found for found in by_step.values() if {stage.stage for stage in found} == numbers]
    plain = [found for found in whole if not any(map(_has_more, found))]
    whole = plain or whole
    whole.sort(key=lambda found: max(stage.spans[-1].end_s for stage in found))
    return tuple(whole[len(whole) // 2]) if whole else ()


def _has_more(stage: StageTimeline) -> bool:
    return any(span.kind in {SpanKind.CHECKPOINT, SpanKind.EVALUATION} for span in stage.spans)


def _spent(summary: RunSummary) -> Chart | None:
    measured = [stage for stage in summary.stages if stage.seconds]
    if not measured:
        return None
    several = _num_replicas(summary) > 1
    found = [Bar(name=_short_name(stage, several=several), seconds=_seconds(stage)) for stage in measured]
    spent = {cause for bar in found for cause, seconds_of in bar.seconds.items() if seconds_of > 0}
    drawn = bars(found, label="Where each stage's time went, measured", write=seconds)
    return chart(drawn, looks=looks_of(spent))


def _seconds(stage: StageSummary) -> dict[str, float]:
    """Return a stage's seconds; a backward without weight gradients is called `input`."""
    name = "input" if stage.seconds.get(SpanKind.BACKWARD_WEIGHT) else SpanKind.BACKWARD_INPUT.value
    return {name if kind == SpanKind.BACKWARD_INPUT else kind: spent for kind, spent in stage.seconds.items()}


def _short_name(stage: StageSummary, *, several: bool) -> str:
    return f"r{stage.replica} s{stage.stage}" if several else f"stage {stage.stage}"
