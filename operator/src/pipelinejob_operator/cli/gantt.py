"""A timeline drawn with letters, for a terminal."""

from collections.abc import Iterator

from rich.text import Text

from pipelinejob.timeline import WAITING, Span, SpanKind, Timeline
from pipelinejob_operator.report.charts import seconds

_NAME_WIDTH = 10
_STYLES = {
    SpanKind.FORWARD: ("F", "white on blue"),
    SpanKind.BACKWARD_INPUT: ("B", "black on dark_orange"),
    SpanKind.BACKWARD_WEIGHT: ("W", "black on orange3"),
    SpanKind.OPTIMIZER: ("O", "white on purple"),
}


def gantt_lines(timeline: Timeline, width: int, *, has_scale: bool = True) -> Iterator[Text]:
    """Draw each stage of replica 0 as a line `width` characters wide."""
    stages = [stage for stage in timeline.stages if stage.replica == 0]
    end_s = max(stage.spans[-1].end_s for stage in stages)
    columns = max(20, width - _NAME_WIDTH - 1)
    for stage in stages:
        line = Text(f"stage {stage.stage}".ljust(_NAME_WIDTH))
        for span in stage.spans:
            room = round(span.end_s / end_s * columns) - round(span.start_s / end_s * columns)
            line.append_text(_cell(span, room))
        yield line
    if has_scale:
        yield Text(" " * _NAME_WIDTH + "0" + seconds(end_s).rjust(columns - 1), style="dim")


def _cell(span: Span, room: int) -> Text:
    if span.kind in WAITING or span.kind not in _STYLES:
        return Text("·" * room, style="dim")
    letter, style = _STYLES[span.kind]
    name = f"{letter}{span.micro_batch}" if span.micro_batch is not None else letter
    # A cell's last column stays empty where there is room, so that neighbours of one colour stay apart.
    return Text(name[:room].ljust(room, " " if room > len(name) else letter), style=style)
