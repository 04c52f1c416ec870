"""A schedule as a picture, and schedules as pages: the chart, the memory over time, the idle time by cause. Pure."""

from collections.abc import Mapping, Sequence
from html import escape

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.text import render
from pipelinejob_operator.report import charts
from pipelinejob_operator.report.gantt import Curve, Panel, body, curves, gantt, height_of, readable_width
from pipelinejob_operator.report.looks import LOOKS, Look, shade_class, style_sheet
from pipelinejob_operator.report.marks import Row, looks_in, shades_of
from pipelinejob_operator.report.numbers import plain
from pipelinejob_operator.report.page import page, section
from pipelinejob_operator.report.schedule_view import ScheduleView
from pipelinejob_operator.report.svg import LEFT, rect, text

_PAGE_WIDTH = 1560
_TOP, _LINE, _EDGE = 62, 20, 16  # of a picture that stands alone
_LONGEST_TEXT = 20_000  # characters of a schedule that a page shows

_PICTURE_STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;fill:#5b6472}
.on-dark,.on-light{font-size:10.5px;font-weight:600}.on-dark{fill:#fff}.on-light{fill:#10141b}
.strong{fill:#1b1f27;font-weight:600}.title{fill:#1b1f27;font-size:17px;font-weight:650}
.grid{stroke:#eceef2}.page{fill:#fff}
@media (prefers-color-scheme: dark){text{fill:#9aa4b2}.strong,.title{fill:#e8ebf0}.on-dark{fill:#fff}
.on-light{fill:#10141b}.grid{stroke:#252a34}.page{fill:#1a1e26}}
"""


def schedule_picture(view: ScheduleView) -> str:
    """Draw a schedule as one SVG file that stands alone."""
    panel = Panel(rows=view.rows)
    span_s = view.outcome.simulation.makespan_s
    width = readable_width([panel], span_s)
    below = _TOP + height_of([panel]) + _LINE
    legend, end = _picture_legend(looks_in(panel.rows), shades_of(view.outcome.schedule), below, width)
    full_width, full_height = width + 2 * _EDGE, end + _EDGE
    label = escape(f"{view.outcome.name}: {view.sizes}")
    opened = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full_width:.0f}" height="{full_height:.0f}" '
        f'viewBox="{-_EDGE} 0 {full_width:.0f} {full_height:.0f}" role="img" aria-label="{label}">'
    )
    return "".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>\n',
            opened,
            f"<style>{_PICTURE_STYLE}{style_sheet()}</style>",
            rect(-_EDGE, 0, full_width, full_height, style="page"),
            text(0, 26, view.outcome.name.value, anchor="start", style="title"),
            text(0, 46, f"{view.sizes}; {view.times}", anchor="start"),
            *body([panel], span_s, plain, width, top=_TOP),
            legend,
            "</svg>\n",
        ]
    )


def _picture_legend(looks: Sequence[Look], shades: Mapping[int, str], top: float, right: float) -> tuple[str, float]:
    """Explain looks and shades in as many lines as it takes; give the elements, and where they end."""
    entries = [([look.key], look.name) for look in looks]
    for shade, name in shades.items():
        entries.append(([look.key + shade_class(shade) for look in looks if look.has_shades], name))
    parts, x, y = [], float(LEFT), top
    for swatches, name in entries:
        width = 14 * len(swatches) + 6.4 * len(name) + 22
        if x + width > right:
            x, y = float(LEFT), y + _LINE
        for number, style in enumerate(swatches):
            parts.append(rect(x + 14 * number, y - 9, 11, 11, style=style, radius=3))
        parts.append(text(x + 14 * len(swatches) + 3, y, name, anchor="start"))
        x += width
    return "".join(parts), y


def schedule_page(view: ScheduleView) -> str:
    """Write the page of one schedule."""
    outcome, simulation = view.outcome, view.outcome.simulation
    panel = Panel(rows=view.rows)
    width = max(_PAGE_WIDTH, readable_width([panel], simulation.makespan_s))
    chart = gantt([panel], span_s=simulation.makespan_s, label="Timeline of one step", write=plain, width=width)
    sections = [
        section(
            "Timeline",
            _note(_NUMBERS)
            + _scrolled(chart, width)
            + charts.legend(looks_in(panel.rows), shades=shades_of(outcome.schedule)),
        ),
        _held(view, width),
        _idle(view),
        _actions(view),
    ]
    return page(f"{outcome.name} · PipelineJob schedule", _header(view) + "".join(sections), is_wide=True)


_NUMBERS = "Numbers are micro-batches, after a point the chunk; shades tell chunks and directions apart."


def comparison_page(views: Sequence[ScheduleView], missing: Mapping[ScheduleName, str], *, sizes: str) -> str:
    """Write the page of several schedules, one above the other on one time axis, and those that cannot be."""
    panels = [Panel(rows=view.rows, title=f"{view.outcome.name}: {view.times}; {view.memory}") for view in views]
    rows = [row for panel in panels for row in panel.rows]
    span_s = max(view.outcome.simulation.makespan_s for view in views)
    width = max(_PAGE_WIDTH, readable_width(panels, span_s))
    chart = gantt(panels, span_s=span_s, label="Timelines of one step, on one axis", write=plain, width=width)
    left_out = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in missing.items())
    sections = [
        section("On one time axis", _note(_NUMBERS) + _scrolled(chart, width) + charts.legend(looks_in(rows))),
        section("Not for these sizes", f"<ul>{left_out}</ul>") if left_out else "",
    ]
    header = f'<header><h1>Schedules compared</h1><p class="soft">{escape(sizes)}</p></header>'
    return page("Schedules compared · PipelineJob", header + "".join(sections), is_wide=True)


def _header(view: ScheduleView) -> str:
    facts = "".join(f'<p class="soft">{escape(line)}</p>' for line in view.facts)
    return (
        f'<header><h1>{escape(view.outcome.name.value)}</h1><p class="soft">{escape(view.title)} ·'
        f' {escape(view.source)}</p></header><div class="lead">{facts}</div>'
    )


def _held(view: ScheduleView, width: float) -> str:
    outcome, simulation = view.outcome, view.outcome.simulation
    if outcome.schedule.is_forward_only:
        return ""
    caps = outcome.caps or (None,) * outcome.schedule.num_ranks
    found = [
        Curve(name=drawn.name, points=simulation.activations(rank), cap=caps[rank])
        for rank, drawn in enumerate(view.rows)
    ]
    label = "Activations that each rank holds over the step"
    chart = curves(found, span_s=simulation.makespan_s, label=label, width=width)
    cap = "; the broken line is its cap" if outcome.caps else ""
    note = _note(f"Micro-batches whose activations a rank holds, in shares of one; the number is the peak{cap}.")
    return section("Activations held", note + _scrolled(chart, width))


def _idle(view: ScheduleView) -> str:
    bars = [charts.Bar(name=each.name, seconds=_spent(each)) for each in view.rows]
    names = {name for bar in bars for name in bar.seconds}
    chart = charts.bars(bars, label="Where each rank's time goes", write=plain, width=_PAGE_WIDTH)
    return section("Where the time goes", _note("Of the makespan.") + chart + charts.legend(charts.looks_of(names)))


def _spent(drawn: Row) -> dict[str, float]:
    spent: dict[str, float] = {}
    for mark in drawn.marks:
        name = next(name for name, look in LOOKS.items() if look is mark.look)
        spent[name] = spent.get(name, 0.0) + mark.end_s - mark.start_s
    return spent


def _actions(view: ScheduleView) -> str:
    written = render(view.outcome.schedule)
    if len(written) > _LONGEST_TEXT:
        written = "# too long for a page; pipelinejob schedule show -o text prints it\n"
    pre = f'<div class="scroll"><pre>{escape(written)}</pre></div>'
    return section("Actions", f"<details><summary>in the text form, to copy and change</summary>{pre}</details>")


def _scrolled(chart: str, width: float) -> str:
    """Let a chart that is wider than the page be scrolled, not shrunk."""
    return (
        f'<div class="scroll"><div style="min-width:{width:.0f}px">{chart}</div></div>'
        if width > _PAGE_WIDTH
        else chart
    )


def _note(content: str) -> str:
    return f'<p class="note">{escape(content)}</p>'
