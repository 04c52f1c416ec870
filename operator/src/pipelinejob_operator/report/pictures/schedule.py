"""A schedule as one SVG file that stands alone: the chart, and what its colours mean. Pure."""

from collections.abc import Mapping, Sequence
from html import escape

from pipelinejob_operator.report.looks import Look, shade_class, style_sheet
from pipelinejob_operator.report.marks import looks_in, shades_of
from pipelinejob_operator.report.numbers import plain
from pipelinejob_operator.report.pictures.gantt import Panel, body, height_of, readable_width
from pipelinejob_operator.report.pictures.svg import LEFT, rect, text
from pipelinejob_operator.report.schedule_view import ScheduleView

_TOP, _LINE, _EDGE = 62, 20, 16
_STYLE = """
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
            f"<style>{_STYLE}{style_sheet()}</style>",
            rect(-_EDGE, 0, full_width, full_height, style="page"),
            text(0, 26, view.outcome.name.value, anchor="start", style="title"),
            text(0, 46, f"{view.sizes}; {view.times}", anchor="start"),
            *body([panel], span_s, plain, width, top=_TOP),
            legend,
            "</svg>\n",
        ]
    )


def _picture_legend(looks: Sequence[Look], shades: Mapping[int, str], top: float, right: float) -> tuple[str, float]:
    """Explain looks and shades, line by line; return the elements, and where they end."""
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
