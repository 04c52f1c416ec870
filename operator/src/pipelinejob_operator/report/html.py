"""The report of a run: one HTML file that needs nothing else, no network, no script. Pure: data in, HTML out.

Every number says whether it is measured or predicted.
"""

from collections.abc import Callable, Sequence
from html import escape

from pipelinejob.plan import CostSource
from pipelinejob.progress import StepRecord
from pipelinejob.timeline import WAITING, SpanKind, StageTimeline, Timeline
from pipelinejob_operator.report import charts
from pipelinejob_operator.report.charts import seconds
from pipelinejob_operator.report.run_view import layers
from pipelinejob_operator.report.style import SCRIPT, STYLE
from pipelinejob_operator.report.summary import Pair, RunSummary, StageSummary
from pipelinejob_operator.report.trace import offsets

_Writer = Callable[[float | None], str]


def html_report(
    summary: RunSummary,
    *,
    steps: Sequence[StepRecord],
    predicted: Timeline,
    measured: Timeline,
    sample: str | None = None,
) -> str:
    """Write the whole page."""
    sections = [
        _facts(summary),
        _loss(steps),
        _timelines(predicted, measured),
        _idle(summary),
        _stages(summary),
        _sample(sample),
    ]
    title = escape(f"{summary.name} · PipelineJob report")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f"{_header(summary)}{''.join(sections)}{_footer(summary)}"
        f'</main><div id="tip" aria-hidden="true"></div><script>{SCRIPT}</script></body></html>\n'
    )


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
        ("Bubble, mean over stages", *_both(summary.bubble_ratio, _percent)),
        ("Restarts", str(summary.restarts), f"{summary.attempts} attempt{'s' * (summary.attempts != 1)}"),
    ]
    items = "".join(
        f'<div class="fact"><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>'
        for name, value, note in facts
    )
    return f'<dl class="facts">{items}</dl>'


def _loss(steps: Sequence[StepRecord]) -> str:
    if not steps:
        return _section("Loss", '<p class="note">No step was completed.</p>')
    note = '<p class="note">Measured, every step; the strong line is its running mean.</p>'
    return _section("Loss", note + charts.loss_curve(steps))


def _timelines(predicted: Timeline, measured: Timeline) -> str:
    if not predicted.stages and not measured.stages:
        return ""
    planned = tuple(stage for stage in predicted.stages if stage.replica == 0)
    seen = typical_step(measured)
    starts = offsets(seen)
    ordered = [starts[stage.replica, stage.stage, stage.step] for stage in seen]
    width = max(_end(planned, [0.0] * len(planned)), _end(seen, ordered))
    note = (
        '<p class="note">One step, both on the same scale. Numbers are micro-batches: F forward, B backward; '
        "thin bars are waiting.</p>"
    )
    parts = [
        note,
        "<h3>Predicted, before the run</h3>",
        charts.gantt(planned, starts=[0.0] * len(planned), span_s=width, label="Predicted timeline of one step")
        if planned
        else '<p class="note">What these layers cost was not known before the run, so no timeline was predicted.</p>',
    ]
    if seen:
        parts += [
            f"<h3>Measured, step {seen[0].step}</h3>",
            charts.gantt(seen, starts=ordered, span_s=width, label=f"Measured timeline of step {seen[0].step}"),
        ]
    else:
        parts.append('<p class="note">No timeline was measured.</p>')
    kinds = {"recv" if span.kind in WAITING and span.kind.value != "send" else span.kind.value
             for stage in (*planned, *seen) for span in stage.spans}  # fmt: skip
    return _section("Timeline", "".join(parts) + charts.legend(sorted(kinds)))


def typical_step(measured: Timeline) -> tuple[StageTimeline, ...]:
    """Give replica 0's ranks in the step of median length, of those that all kept and that wrote no checkpoint."""
    stages = [stage for stage in measured.stages if stage.replica == 0 and stage.spans]
    numbers = {stage.stage for stage in stages}
    by_step = {step: sorted((s for s in stages if s.step == step), key=lambda s: s.stage)
               for step in {stage.step for stage in stages}}  # fmt: skip
    whole = [found for found in by_step.values() if {stage.stage for stage in found} == numbers]
    plain = [found for found in whole if not any(map(_has_checkpoint, found))]
    whole = plain or whole
    whole.sort(key=lambda found: max(stage.spans[-1].end_s for stage in found))
    return tuple(whole[len(whole) // 2]) if whole else ()


def _has_checkpoint(stage: StageTimeline) -> bool:
    return any(span.kind is SpanKind.CHECKPOINT for span in stage.spans)


def _idle(summary: RunSummary) -> str:
    measured = [stage for stage in summary.stages if stage.seconds]
    if not measured:
        return ""
    causes = sorted({cause for stage in measured for cause, spent in stage.seconds.items() if spent > 0})
    note = '<p class="note">Measured, the mean of the last steps, in shares of a step.</p>'
    return _section("Where the time went", note + charts.bars(measured) + charts.legend(causes))


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
    return _section("Stages", f'{note}<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>')


_SOURCES = {
    CostSource.PROFILED: "costs profiled here",
    CostSource.ANALYTIC: "counted operations",
    CostSource.EQUAL: "the number of layers alone: nothing else was known of them, so only ratios were predicted",
}


def _stage_row(stage: StageSummary, *, several: bool) -> str:
    name = f"replica {stage.replica}, stage {stage.stage}" if several else str(stage.stage)
    held = layers(stage.first_layer, stage.end_layer)
    cells = [
        *_cells(stage.utilization_ratio, _percent),
        *_cells(stage.bubble_ratio, _percent),
        *_cells(stage.memory_bytes, _bytes),
    ]
    return (
        f"<tr><th scope=row>{name}</th><td>{held}</td><td>{_count(stage.parameters)}</td>{''.join(cells)}"
        f"<td>{stage.restarts}</td></tr>"
    )


def _sample(sample: str | None) -> str:
    if not sample:
        return ""
    return _section("A sample of the trained model", f'<div class="scroll"><pre>{escape(sample)}</pre></div>')


def _footer(summary: RunSummary) -> str:
    return (
        f"<footer>PipelineJob {escape(summary.namespace)}/{escape(summary.name)}. Beside this file: "
        "<code>summary.json</code>, <code>trace.json</code> (open it at ui.perfetto.dev or chrome://tracing), "
        "<code>steps.jsonl</code>, <code>plan.json</code>, <code>logs/</code>, <code>checkpoints/</code>.</footer>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _end(stages: Sequence[StageTimeline], starts: Sequence[float]) -> float:
    ends = [start + stage.spans[-1].end_s for stage, start in zip(stages, starts, strict=True) if stage.spans]
    return max(ends, default=0.0)


def _both(pair: Pair, write: _Writer) -> tuple[str, str]:
    if pair.measured is None:
        return write(pair.predicted), "predicted; not measured"
    return write(pair.measured), f"measured; predicted {write(pair.predicted)}"


def _cells(pair: Pair, write: _Writer) -> tuple[str, str]:
    return f'<td class="predicted">{write(pair.predicted)}</td>', f"<td>{write(pair.measured)}</td>"


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.1%}"


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _bytes(number: float | None) -> str:
    if number is None:
        return "–"
    mebi = number / 2**20
    return f"{mebi:,.0f} MiB" if mebi < 10_240 else f"{mebi / 1024:,.1f} GiB"  # noqa: PLR2004  # ten GiB
