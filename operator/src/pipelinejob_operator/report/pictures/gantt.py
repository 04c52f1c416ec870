"""Timelines as pictures: rows of marks over one time axis, and what ranks hold meanwhile."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelinejob_operator.report.looks import shade_class
from pipelinejob_operator.report.marks import Mark, Row, Writer
from pipelinejob_operator.report.numbers import ticks
from pipelinejob_operator.report.pictures.svg import LEFT, WIDTH, line, opened, rect, text

_ROW, _GAP, _AXIS, _TITLE = 26, 5, 24, 32
_RIGHT = 4
_CHARACTER_PX = 6.6  # of a label, at its 10.5 px
_PADDING_PX = 5.0
_THIN = 0.34  # of a row's height stays empty above and below a wait
_MAX_MARKS = 12_000  # more would make a page slow: they are drawn as one shape for each look, without labels and tips
_MAX_WIDTH = 6000
_SEEN_AT_ONCE = 2  # panels
_NEARLY_ALL = 0.9
_LABEL_PX = 15.0  # the height of a label


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Rows that belong together, under a title if there are several panels."""

    rows: tuple[Row, ...]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one rank holds over time, as (second, how much from then on), and its cap."""

    name: str
    points: tuple[tuple[float, float], ...]
    cap: float | None = None


def gantt(panels: Sequence[Panel], *, span_s: float, label: str, write: Writer, width: float = WIDTH) -> str:
    """Draw panels above each other on one time axis; `span_s` seconds fill the width."""
    height = height_of(panels)
    return "".join([opened(height, label, width=width), *body(panels, span_s, write, width), "</svg>"])


def body(panels: Sequence[Panel], span_s: float, write: Writer, width: float, *, top: float = 0.0) -> Iterator[str]:
    """Yield the elements of `gantt`, moved down by `top` pixels, for pictures that show more."""
    scale = (width - LEFT - _RIGHT) / span_s
    bottom = top + height_of(panels) - _AXIS
    for tick in ticks(0, span_s, max(4, round(width / 130))):
        at = LEFT + tick * scale
        yield line(at, top, at, bottom)
        yield text(at, bottom + 17, write(tick) if tick else "0", anchor="middle")
    if _has_axis_above(panels):
        for tick in ticks(0, span_s, max(4, round(width / 130))):
            yield text(LEFT + tick * scale, top + 12, write(tick) if tick else "0", anchor="middle")
        top += _AXIS
    has_tips = sum(len(row.marks) for panel in panels for row in panel.rows) <= _MAX_MARKS
    for panel in panels:
        form = _form(panel, scale)
        if panel.title:
            yield text(0, top + 20, panel.title, anchor="start", style="strong")
            top += _TITLE
        for row in panel.rows:
            yield text(LEFT - 10, top + _ROW / 2 + 4, row.name, anchor="end")
            yield from _marks(row, top, scale, form) if has_tips else _shapes(row, top, scale)
            top += _ROW + _GAP


def height_of(panels: Sequence[Panel]) -> float:
    """Return the height of panels with their axes, in pixels."""
    axes = _AXIS * (1 + _has_axis_above(panels))
    return sum(_TITLE * bool(panel.title) + len(panel.rows) * (_ROW + _GAP) for panel in panels) + axes


def _has_axis_above(panels: Sequence[Panel]) -> bool:
    """Return whether the time axis is drawn above too, as the one below is out of sight."""
    return len(panels) > _SEEN_AT_ONCE


def _form(panel: Panel, scale: float) -> int:
    """Return the fullest form of labels that fits in nearly all marks; a panel uses one form."""
    marks = [mark for row in panel.rows for mark in row.marks if mark.labels and _lasts(mark)]
    forms = max((len(mark.labels) for mark in marks), default=1)
    for form in range(forms):
        room = sum(_width_of(_in_form(mark, form)) <= (mark.end_s - mark.start_s) * scale for mark in marks)
        if room >= _NEARLY_ALL * len(marks):
            return form
    return forms - 1


def _in_form(mark: Mark, form: int) -> str:
    return mark.labels[min(form, len(mark.labels) - 1)]


def readable_width(panels: Sequence[Panel], span_s: float) -> float:
    """Return the width at which most short labels fit, or the usual one if that is too wide."""
    marks = [mark for panel in panels for row in panel.rows for mark in row.marks if mark.labels]
    if not marks or len(marks) > _MAX_MARKS:
        return WIDTH
    lengths = sorted(
        (mark.end_s - mark.start_s) / _width_of(mark.labels[-1]) for mark in marks if mark.end_s > mark.start_s
    )
    wanted = LEFT + _RIGHT + span_s / lengths[len(lengths) // 20] if lengths else WIDTH
    return max(WIDTH, wanted) if wanted <= _MAX_WIDTH else WIDTH


def _width_of(label: str) -> float:
    return len(label) * _CHARACTER_PX + _PADDING_PX


def _marks(row: Row, top: float, scale: float, form: int) -> Iterator[str]:
    for mark in filter(_lasts, row.marks):
        x, width = LEFT + mark.start_s * scale, (mark.end_s - mark.start_s) * scale
        inset = _inset(mark)
        gap = 1.0 if width > 3 else 0  # noqa: PLR2004  # thinner ones would vanish
        yield rect(
            x,
            top + inset,
            max(width - gap, 0.2),
            _ROW - 2 * inset,
            style=mark.look.key + shade_class(mark.shade),
            tip=mark.tip,
            radius=2.5 if width > 6 and mark.look.is_work else 0,  # noqa: PLR2004
        )
        label = _fitting(mark, width, form)
        if label:
            yield text(x + width / 2, top + _ROW / 2 + 4, label, anchor="middle", style=mark.look.ink(mark.shade))


def _fitting(mark: Mark, width: float, form: int) -> str:
    """Return a mark's label in its panel's form, or without its letter, or empty, as it fits.

    The colour says what the letter says.
    """
    candidates = (_in_form(mark, form), mark.labels[-1][1:]) if mark.labels else ()
    return next((label for label in candidates if _width_of(label) <= width), "")


def _shapes(row: Row, top: float, scale: float) -> Iterator[str]:
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for mark in filter(_lasts, row.marks):
        inset = _inset(mark)
        width = (mark.end_s - mark.start_s) * scale
        paths[mark.look.key + shade_class(mark.shade)].append(
            f"M{LEFT + mark.start_s * scale:.1f} {top + inset:.0f}h{width:.2f}v{_ROW - 2 * inset:.0f}h{-width:.2f}z"
        )
    for style, parts in paths.items():
        yield f'<path class="{style}" d="{"".join(parts)}"/>'


def _lasts(mark: Mark) -> bool:
    return mark.end_s > mark.start_s


def _inset(mark: Mark) -> float:
    return 0.0 if mark.look.is_work else round(_ROW * _THIN)


def curves(found: Sequence[Curve], *, span_s: float, label: str, width: float = WIDTH) -> str:
    """Draw what ranks hold, to one scale, over the time of a `gantt` of equal span and width."""
    row, gap = 34, 8
    height = len(found) * (row + gap) + 8
    most = max([held for curve in found for _, held in curve.points] + [curve.cap or 0.0 for curve in found]) or 1.0
    parts = [opened(height, label, width=width)]
    scale = (width - LEFT - _RIGHT) / span_s
    for index, curve in enumerate(found):
        base = index * (row + gap) + row + 4
        parts += _curve(curve, base, row / most, scale, span_s)
        parts.append(text(LEFT - 10, base - row / 2 + 4, curve.name, anchor="end"))
    return "".join([*parts, "</svg>"])


def _curve(curve: Curve, base: float, unit: float, scale: float, span_s: float) -> Iterator[str]:
    right = LEFT + span_s * scale
    yield line(LEFT, base, right, base)
    settled = dict(curve.points)  # what is let go and taken up at one moment leaves no notch
    steps = "".join(f"H{LEFT + at * scale:.1f}V{base - held * unit:.1f}" for at, held in settled.items())
    yield f'<path class="held" d="M{LEFT} {base:.1f}{steps}H{right:.1f}V{base:.1f}z"/>'
    if curve.cap is not None:
        yield line(LEFT, base - curve.cap * unit, right, base - curve.cap * unit, style="cap")
    peak_at, peak = max(curve.points, key=lambda point: point[1], default=(0.0, 0.0))
    x = min(LEFT + peak_at * scale + 4, right - 26)
    below = 12 if peak * unit > _LABEL_PX else -4
    yield text(x, base - peak * unit + below, f"{peak:g}", anchor="start", style="strong")
