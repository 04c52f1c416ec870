"""Timelines drawn with characters, for a terminal: in colours, or else in letters alone."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.style import Style
from rich.text import Text

from pipelinejob.base.timeline import Timeline
from pipelinejob.schedules.actions import Schedule
from pipelinejob_operator.report.looks import Look
from pipelinejob_operator.report.marks import Mark, Row, Writer, looks_in, row
from pipelinejob_operator.report.numbers import seconds

_NAME_WIDTH = 10
_LEAST_COLUMNS = 20
_INK = {"on-dark": "#ffffff", "on-light": "#10141b"}
_WHOLE = 1e-6  # of the picture's length: what counts as no time at all when times are measured in whole cells


def gantt_lines(
    timeline: Timeline,
    width: int,
    *,
    schedule: Schedule | None = None,
    has_scale: bool = True,
    has_colours: bool = True,
) -> Iterator[Text]:
    """Draw each stage of replica 0 as a line `width` characters wide.

    The schedule tells the directions of one with several routes apart.
    """
    stages = [stage for stage in timeline.stages if stage.replica == 0]
    rows = [row(stage, f"stage {stage.stage}", write=seconds, schedule=schedule) for stage in stages]
    return row_lines(rows, width, write=seconds if has_scale else None, has_colours=has_colours)


def row_lines(
    rows: Sequence[Row], width: int, *, write: Writer | None, has_colours: bool = True, in_cells: bool = False
) -> Iterator[Text]:
    """Draw rows as lines of at most `width` characters, above a time axis unless `write` is None.

    With `in_cells`, times that are multiples of a common unit get a whole number of columns for
    it, where there is room, and no more of them than labels need.
    """
    end_s = max(row.end_s for row in rows)
    columns = max(_LEAST_COLUMNS, width - _NAME_WIDTH - 1)
    scale = columns / end_s
    if in_cells:
        scale = _cell_scale(rows, end_s, columns) or scale
    for each in rows:
        line = Text(each.name.ljust(_NAME_WIDTH))
        for mark in each.marks:
            room = round(mark.end_s * scale) - round(mark.start_s * scale)
            line.append_text(_cell(mark, room, has_colours=has_colours))
        yield line
    if write is not None:
        yield Text(" " * _NAME_WIDTH + "0" + write(end_s).rjust(round(end_s * scale) - 1), style="dim")


def legend_line(rows: Sequence[Row], shades: Mapping[int, str], *, has_colours: bool) -> Text:
    """Explain colours, letters and shades in one line."""
    line = Text()
    looks = looks_in(rows)
    for look in looks:
        if look.letter:
            line.append_text(Text(f" {look.letter} ", style=_style(look, 0) if has_colours else ""))
            line.append(f" {look.name}   ", style="dim")
    if any(not mark.look.letter for each in rows for mark in each.marks):
        line.append("· waiting   ", style="dim")
    if shades and has_colours:
        first = next(look for look in looks if look.letter)
        for shade, name in shades.items():
            line.append_text(Text(f" {first.letter} ", style=_style(first, shade)))
            line.append(f" {name}   ", style="dim")
    elif shades:
        line.append("lower case: " + ", ".join(name for shade, name in shades.items() if shade % 2))
    return line


def readable_width(rows: Sequence[Row]) -> int:
    """Return the smallest width at which the number of each label can be read."""
    marks = [mark for each in rows for mark in each.marks if mark.labels and mark.end_s > mark.start_s]
    shortest = min(((mark.end_s - mark.start_s) / len(mark.labels[-1]) for mark in marks), default=1.0)
    return _NAME_WIDTH + 1 + math.ceil(max(each.end_s for each in rows) / shortest)


def _cell_scale(rows: Sequence[Row], end_s: float, columns: int) -> float | None:
    """Return the columns a second at which a common unit has whole ones; None without a unit."""
    unit = _common_unit({moment for row in rows for mark in row.marks for moment in (mark.start_s, mark.end_s)}, end_s)
    per_unit = int(columns / (end_s / unit) + _WHOLE) if unit else 0
    if not unit or per_unit < 1:
        return None
    labelled = [mark for row in rows for mark in row.marks if mark.labels and mark.end_s > mark.start_s]
    wanted = max((len(m.labels[0]) + 1) / round((m.end_s - m.start_s) / unit) for m in labelled) if labelled else 1
    return min(per_unit, math.ceil(wanted)) / unit


def _common_unit(moments: set[float], end_s: float) -> float | None:
    """Return the greatest time of which all moments are multiples; None if it is near 0."""
    least = end_s * _WHOLE
    unit = end_s
    for moment in moments:
        other = moment
        while other > least:  # Euclid's
            unit, other = other, math.fmod(unit, other)
            if unit - other < least:  # a multiple but for rounding
                other = 0.0
        if unit < 1000 * least:
            return None
    return unit


def _cell(mark: Mark, room: int, *, has_colours: bool) -> Text:
    if not mark.labels:
        return Text(("·" if not mark.look.is_work else "─") * room, style="dim")
    odd = not has_colours and mark.shade % 2 == 1
    labels = [label.lower() if odd else label for label in mark.labels]
    # A cell's last column stays empty where there is room, so that neighbours of one colour stay
    # apart.
    label = next((label for label in (*labels, labels[-1][1:] if has_colours else "") if len(label) <= room), "")
    filled = label.ljust(room) if label else labels[-1][0] * room
    return Text(filled, style=_style(mark.look, mark.shade) if has_colours else "")


def _style(look: Look, shade: int) -> Style:
    return Style(color=_INK[look.ink(shade)], bgcolor=look.shaded(shade))
