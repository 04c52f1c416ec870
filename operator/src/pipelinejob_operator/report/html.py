"""The report of a run: one HTML file that needs nothing else, no network, no script. Pure: data in, HTML out.

Every number says whether it is measured or predicted.
"""

from collections.abc import Callable, Sequence
from html import escape

from pipelinejob.plan import CostSource
from pipelinejob.progress import StepRecord
from pipelinejob.schedules.actions import Schedule
from pipelinejob.timeline import SpanKind, StageTimeline, Timeline
from pipelinejob_operator.report import charts
from pipelinejob_operator.report.gantt import Panel, gantt
from pipelinejob_operator.report.marks import looks_in, row, shades_of
from pipelinejob_operator.report.numbers import percent, seconds
from pipelinejob_operator.report.page import page, section
from pipelinejob_operator.report.run_view import layers
from pipelinejob_operator.report.summary import Pair, RunSummary, StageSummary
from pipelinejob_operator.report.trace import offsets

_Writer = Callable[[float | None], str]


def html_report(
    summary: RunSummary,
    *,
    steps: Sequence[StepRecord],
    predicted: Timeline,
    measured: Timeline,
    schedule: Schedule | None = None,
    sample: str | None = None,
) -> str:
    """Write the whole page; the schedule tells the directions of one with several routes apart."""
    sections = [
        _facts(summary),
        _loss(steps),
        _timelines(predicted, measured, schedule),
        _idle(summary),
        _stages(summary),
        _sample(sample),
    ]
    title = f"{summary.name} · PipelineJob report"
    return page(title, _header(summary) + "".join(sections) + _footer(summary))


def _header(summary: RunSummary) -> str:
    tone = {"Succeeded": "good", "Failed": "bad"}.get(summary.state, "soft")
    tokens = f"{summary.micro_batches} micro-batches of {summary.micro_batch_size}"
    num_stages = len({stage.stage for stage in summary.stages})
    num_replicas = len({stage.replica for stage in summary.stages})
    replicas = f" × {num_replicas} replicas" if num_replicas > 1 else ""
    message = (
        f'<p class="note">{escape(summary.message)}</p>' if summary.state != "Succeeded" and summary.message else ""
    )
    return (
        f'<header><h1>{escape(summary.name)}</h1><span class="state {tone}">{escape(summary.state)}</span>'
        f'<p class="soft">{num_stages} stages{replicas} · {escape(summary.schedule.value)} · {tokens}</p></header>'
        f"{message}"
    )


def _facts(summary: RunSummary) -> str:
    first, last = summary.loss_first, summary.loss_last
    loss = f"{first:.3f} → {last:.3f}" if first is not None and last is not None else "–"
    facts = [
        ("Loss, nats per token", loss, "measured, first step → last"),
        ("Steps", f"{summary.steps:,} of {summary.steps_wanted:,}", f"in {seconds(summary.training_s)} of training"),
        ("Step time", *_both(summary.step_s, seconds)),
        ("Tokens per second", *_both(summary.tokens_per_s, _count)),
        ("Bubble, mean over stages", *_both(summary.bubble_ratio, percent)),
        ("Restarts", str(summary.restarts), f"{summary.attempts} attempt{'s' * (summary.attempts != 1)}"),
    ]
    items = "".join(
        f'<div class="fact"><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>'
        for name, value, note in facts
    )
    return f'<dl class="facts">{items}</dl>'


def _loss(steps: Sequence[StepRecord]) -> str:
    if not steps:
        return section("Loss", '<p class="note">No step was completed.</p>')
    note = '<p class="note">Measured, every step; the strong line is its running mean.</p>'
    return section("Loss", note + charts.loss_curve(steps))


def _timelines(predicted: Timeline, measured: Timeline, schedule: Schedule | None) -> str:
    planned = tuple(stage for stage in predicted.stages if stage.replica == 0)
    seen = typical_step(measured)
    panels = [_panel("Predicted, before the run", planned, [0.0] * len(planned), schedule)] if planned else []
    if seen:
        starts = offsets(seen)
        ordered = [starts[stage.replica, stage.stage, stage.step] for stage in seen]
        panels.append(_panel(f"Measured, step {seen[0].step}", seen, ordered, schedule))
    if not panels:
        return ""
    rows = [row for panel in panels for row in panel.rows]
    missing = [
        *(
            ["What these layers cost was not known before the run, so no timeline was predicted."]
            if not planned
            else []
        ),
        *(["No timeline was measured."] if not seen else []),
    ]
    note = " ".join(["One step, on one time axis. Numbers are micro-batches; thin bars are waiting.", *missing])
    chart = gantt(
        panels, span_s=max(row.end_s for row in rows), label="Timelines of one step, on one axis", write=seconds
    )
    explained = charts.legend(looks_in(rows), shades=shades_of(schedule) if schedule else {})
    return section("Timeline", f'<p class="note">{note}</p>{chart}{explained}')


def _panel(title: str, stages: Sequence[StageTimeline], starts: Sequence[float], schedule: Schedule | None) -> Panel:
    rows = (
        row(stage, f"stage {stage.stage}", write=seconds, schedule=schedule, start_s=start)
        for stage, start in zip(stages, starts, strict=True)
    )
    return Panel(title=title, rows=tuple(rows))


def typical_step(measured: Timeline) -> tuple[StageTimeline, ...]:
    """Give replica 0's ranks in the step of median length, of those that all kept.

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


def _idle(summary: RunSummary) -> str:
    measured = [stage for stage in summary.stages if stage.seconds]
    if not measured:
        return ""
    several = len({stage.replica for stage in summary.stages}) > 1
    found = [charts.Bar(name=_short_name(stage, several=several), seconds=_spent(stage)) for stage in measured]
    spent = {cause for bar in found for cause, seconds_of in bar.seconds.items() if seconds_of > 0}
    note = '<p class="note">Measured, the mean of the last steps, in shares of a step.</p>'
    bars = charts.bars(found, label="Where each stage's time went, measured", write=seconds)
    return section("Where the time went", note + bars + charts.legend(charts.looks_of(spent)))


def _spent(stage: StageSummary) -> dict[str, float]:
    """Give a stage's seconds, those of backwards named for what they are where weight gradients come apart."""
    name = "input" if stage.seconds.get(SpanKind.BACKWARD_WEIGHT) else SpanKind.BACKWARD_INPUT.value
    return {name if kind == SpanKind.BACKWARD_INPUT else kind: spent for kind, spent in stage.seconds.items()}


def _short_name(stage: StageSummary, *, several: bool) -> str:
    return f"r{stage.replica} s{stage.stage}" if several else f"stage {stage.stage}"


def _stages(summary: RunSummary) -> str:
    head = (
        "<thead><tr><th scope=col rowspan=2>Stage</th><th scope=col rowspan=2>Layers</th>"
        "<th scope=col rowspan=2>Parameters</th><th scope=colgroup colspan=2>Utilization</th>"
        "<th scope=colgroup colspan=2>Bubble</th><th scope=colgroup colspan=2>Peak memory</th>"
        "<th scope=col rowspan=2>Restarts</th></tr>"
        f"<tr>{'<th scope=col>predicted</th><th scope=col>measured</th>' * 3}</tr></thead>"
    )
    rows = "".join(_stage_row(stage, several=len({s.replica for s in summary.stages}) > 1) for stage in summary.stages)
    note = (
        '<p class="note">Utilization is computing over the whole step; bubble is waiting over waiting and computing. '
        "Memory is predicted for parameters, gradients, optimiser state and activations, and measured for the whole "
        "process. "
        f"Predicted from {_SOURCES[summary.cost_source]}. {escape(summary.crowding or '')}</p>"
    )
    return section("Stages", f'{note}<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>')


_SOURCES = {
    CostSource.PROFILED: "costs profiled here",
    CostSource.ANALYTIC: "counted operations",
    CostSource.EQUAL: "the number of layers alone: nothing else was known of them, so only ratios were predicted",
}


def _stage_row(stage: StageSummary, *, several: bool) -> str:
    name = f"replica {stage.replica}, stage {stage.stage}" if several else str(stage.stage)
    held = layers(stage.chunks)
    cells = [
        *_cells(stage.utilization_ratio, percent),
        *_cells(stage.bubble_ratio, percent),
        *_cells(stage.memory_bytes, _bytes),
    ]
    return (
        f"<tr><th scope=row>{name}</th><td>{held}</td><td>{_count(stage.parameters)}</td>{''.join(cells)}"
        f"<td>{stage.restarts}</td></tr>"
    )


def _sample(sample: str | None) -> str:
    if not sample:
        return ""
    return section("A sample of the trained model", f'<div class="scroll"><pre>{escape(sample)}</pre></div>')


def _footer(summary: RunSummary) -> str:
    return (
        f"<footer>PipelineJob {escape(summary.namespace)}/{escape(summary.name)}. Beside this file: "
        "<code>summary.json</code>, <code>trace.json</code> (open it at ui.perfetto.dev or chrome://tracing), "
        "<code>steps.jsonl</code>, <code>plan.json</code>, <code>logs/</code>, <code>checkpoints/</code>.</footer>"
    )


def _both(pair: Pair, write: _Writer) -> tuple[str, str]:
    if pair.measured is None:
        return write(pair.predicted), "predicted; not measured"
    return write(pair.measured), f"measured; predicted {write(pair.predicted)}"


def _cells(pair: Pair, write: _Writer) -> tuple[str, str]:
    return f'<td class="predicted">{write(pair.predicted)}</td>', f"<td>{write(pair.measured)}</td>"


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _bytes(number: float | None) -> str:
    if number is None:
        return "–"
    mebi = number / 2**20
    return f"{mebi:,.0f} MiB" if mebi < 1024 else f"{mebi / 1024:,.1f} GiB"  # noqa: PLR2004  # of a GiB
