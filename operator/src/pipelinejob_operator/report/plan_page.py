"""A plan as a page: the fabric with the chain of stages on it, the stages, the predicted step, what else could be done.

Pure. Nothing on it was measured, and it says so.
"""

from collections.abc import Sequence
from html import escape

from pipelinejob.cost import Profile
from pipelinejob.planner import predicted_timeline
from pipelinejob.playing import schedule_of
from pipelinejob_operator.report import charts
from pipelinejob_operator.report.fabric_picture import STYLE, crossings_by_class, fabric_picture
from pipelinejob_operator.report.gantt import Panel, gantt
from pipelinejob_operator.report.marks import looks_in, row, shades_of
from pipelinejob_operator.report.numbers import percent, seconds
from pipelinejob_operator.report.page import page, section
from pipelinejob_operator.report.plan_view import (
    About,
    Alternative,
    PlanView,
    gib,
    memory_parts,
    price_text,
)
from pipelinejob_operator.report.run_view import layers

_MOST_MICRO_BATCHES = 4096  # of all stages together; a longer step cannot be drawn so that it is seen
_MOST_PATHS = 1
_STYLE = """
.facts { grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); } dl.fact { margin: 0; }
.note + .note { margin-top: -8px; } .wraps tbody th { white-space: normal; min-width: 260px; }
.dense td, .dense th { padding: 3px 7px; font-size: 12.5px; } .tall { max-height: 640px; overflow: auto; }
.tall thead th { position: sticky; top: 0; background: var(--card); }
@media print { .tall { max-height: none; } }
"""
_TITLES = {
    About.TO_FIT: "What would fit now",
    About.PLACEMENT: "Other places",
    About.CONFIGURATION: "Other configurations",
}


def plan_page(views: Sequence[tuple[PlanView, Profile]]) -> str:
    """Write the page of one plan, or of several below each other; each comes with the costs it was planned with."""
    names = ", ".join(view.name for view, _ in views)
    content = "".join(_of_plan(view, costs) for view, costs in views)
    return page(f"{names} · PipelineJob plan", f"<style>{STYLE}{_STYLE}</style>{content}")


def _of_plan(view: PlanView, costs: Profile) -> str:
    sections = [
        _fabric(view),
        *(_alternatives(view, about) for about in _TITLES),
        _stages(view),
        _timeline(view, costs),
        _rejected(view),
    ]
    return _header(view) + _facts(view) + "".join(sections)


def _header(view: PlanView) -> str:
    state = {
        True: '<span class="state good">fits</span>',
        False: '<span class="state bad">does not fit</span>',
        None: "",
    }[view.fits]
    where, network = view.where and f"on {view.where}", view.tree and f"network: {view.tree}"
    facts = (view.shape_line, where, network, view.devices_line, *view.notes)
    lead = "".join(f'<p class="soft">{escape(line)}</p>' for line in facts if line)
    short = f'<p class="bad">{escape(view.shortfall)}</p>' if view.shortfall else ""
    said = '<span class="soft">a plan: all figures are predictions</span>'
    return f'<header><h1>{escape(view.name)}</h1>{said}{state}</header><div class="lead">{lead}{short}</div>'


def _facts(view: PlanView) -> str:
    prediction, is_absolute = view.plan.prediction, view.is_absolute
    facts = []
    if is_absolute:
        facts.append(("a step", seconds(prediction.step_s), f"{prediction.tokens_per_s:,.0f} tokens/s, predicted"))
    facts.append(("bubble", percent(prediction.bubble_ratio), "mean over stages, predicted"))
    if is_absolute:
        fullest = max(view.plan.stages, key=lambda stage: stage.memory_bytes)
        limit = view.memory_of_device(fullest.stage)
        beside = f"{f'of {gib(limit)}, ' if limit else ''}on the fullest stage, predicted"
        facts.append(("memory", gib(fullest.memory_bytes), beside))
    if view.penalty_ratio is not None:
        least = view.least_penalty_ratio
        beside = "of a step, predicted" + ("" if least is None else f"; at least {least:.2%} anywhere now")
        facts.append(("what the network costs", f"{view.penalty_ratio:.2%}", beside))
    entries = "".join(
        f'<dl class="fact"><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(beside)}</dd></dl>'
        for name, value, beside in facts
    )
    return f'<div class="facts">{entries}</div>'


def _fabric(view: PlanView) -> str:
    if view.fabric is None:
        return ""
    lines = [line for line in (view.placement_line, view.trade_line, view.room_line) if line]
    note = "".join(f'<p class="note">{escape(line)}</p>' for line in lines)
    picture = fabric_picture(view.fabric)
    return section("The fabric, and the chain of stages on it", f"{note}{picture}{_fabric_legend(view)}")


def _fabric_legend(view: PlanView) -> str:
    assert view.fabric is not None, "only a fabric that is drawn is explained"
    items = [
        f'<li><i class="swatch {style}"></i>'
        f"{count} {'boundary crosses' if count == 1 else 'boundaries cross'} a {escape(level)}</li>"
        for style, level, count in crossings_by_class(view.fabric)
    ]
    items.append("<li>filled: a stage of this job, by its number</li><li>grey: taken by others</li>")
    if view.plan.parallelism.data > 1:
        items.append("<li>before a point the replica, after a × how many of them</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _alternatives(view: PlanView, about: About) -> str:
    found = [each for each in view.alternatives if each.about is about]
    if not found:
        return ""
    heads = ("", "step", "price", "bubble", "memory", "crossings", "room left")
    rows = "".join(_alternative_row(each) for each in found)
    note = '<p class="note">Predicted, like all on this page; the price is that of the same work.</p>'
    return section(_TITLES[about], f'{note}<div class="scroll dense wraps">{_table(heads, rows)}</div>')


def _alternative_row(each: Alternative) -> str:
    cells = (
        seconds(each.step_s),
        price_text(each.price),
        percent(each.bubble_ratio),
        "–" if each.memory_bytes is None else gib(each.memory_bytes),
        _counts(each.crossings),
        _counts(each.room_left),
    )
    tip = "; ".join(f"{path}: {value}" for path, value in (each.fields or {}).items())
    return f'<tr><th scope="row" title="{escape(tip)}">{escape(each.what)}</th>{_cells(cells)}</tr>'


def _stages(view: PlanView) -> str:
    heads = ["stage", *(["node"] if view.placement else [])]
    heads += ["layers", "parameters", "forward", "backward", "bubble", "memory"]
    if view.is_absolute:
        heads += ["weights", "gradients", "optimizer", "activations"]
    rows = "".join(_stage_row(view, stage) for stage in range(len(view.plan.stages)))
    note = '<p class="note">Seconds of one micro-batch; the peak of memory, and what it consists of. All predicted.</p>'
    return section("Stages", f'{note}<div class="scroll tall dense">{_table(heads, rows)}</div>')


def _stage_row(view: PlanView, index: int) -> str:
    stage, is_absolute = view.plan.stages[index], view.is_absolute
    parts = memory_parts(stage)
    cells = [_nodes(view, index)] if view.placement else []
    cells += [
        layers(stage.chunks),
        f"{stage.parameter_bytes / 4e6:,.1f} M" if is_absolute else "–",
        seconds(stage.forward_s if is_absolute else None),
        seconds(stage.backward_s if is_absolute else None),
        percent(stage.bubble_ratio),
        gib(stage.memory_bytes) if is_absolute else "–",
    ]
    if is_absolute:
        cells += map(gib, (parts.parameters, parts.gradients, parts.optimizer, parts.activations))
    return f'<tr><th scope="row">{index}</th>{_cells(cells)}</tr>'


def _nodes(view: PlanView, stage: int) -> str:
    places = view.places_of(stage)
    further = len(places) - _MOST_PATHS
    shown = ", ".join(path for path, _ in places[:_MOST_PATHS])
    return f"{shown} and {further} more" if further > 0 else shown


def _timeline(view: PlanView, costs: Profile) -> str:
    plan = view.plan
    if plan.schedule.micro_batches * len(plan.stages) > _MOST_MICRO_BATCHES:
        note = f"A step of {plan.schedule.micro_batches:,} micro-batches is too long to be drawn so that it is seen."
        return section("The predicted step", f'<p class="note">{note}</p>')
    schedule = schedule_of(plan)
    stages = [stage for stage in predicted_timeline(plan, costs).stages if stage.replica == 0]
    panel = Panel(rows=tuple(row(stage, f"stage {stage.stage}", write=seconds, schedule=schedule) for stage in stages))
    span_s = max(each.end_s for each in panel.rows)
    write = seconds if view.is_absolute else (lambda _: "")
    chart = gantt([panel], span_s=span_s, label="Predicted timeline of one step", write=write)
    return section("The predicted step", chart + charts.legend(looks_in(panel.rows), shades=shades_of(schedule)))


def _rejected(view: PlanView) -> str:
    if not view.rejected:
        return ""
    items = "".join(f"<li><b>{escape(each.what)}</b>: {escape(each.why)}</li>" for each in view.rejected)
    summary = f"<summary>{len(view.rejected)} that cannot be, or cannot be better</summary>"
    return section("Rejected", f"<details>{summary}<ul>{items}</ul></details>")


def _table(heads: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _counts(found: dict[str, int] | None) -> str:
    return ", ".join(f"{level} {count}" for level, count in (found or {}).items() if count) or "–"
