"""The report's pictures as SVG: the loss, the timelines, where each stage's time went. Pure: data in, markup out."""

import itertools
import math
from collections.abc import Iterator, Sequence
from html import escape

from pipelinejob.progress import StepRecord
from pipelinejob.timeline import WAITING, Span, SpanKind, StageTimeline
from pipelinejob_operator.report.summary import StageSummary

WIDTH = 1076
_LEFT = 64  # room for the axis' and the stages' names
_LETTERS = {SpanKind.FORWARD: "F", SpanKind.BACKWARD_INPUT: "B", SpanKind.BACKWARD_WEIGHT: "W"}
_LETTER_MIN_PX = 15
_MAX_POINTS = 1200  # more than this the screen can't show
# In the order in which the bars are stacked: what is wanted first, what is not last.
CAUSES = {
    "forward": ("forward", "forward"),
    "backward_input": ("backward", "backward"),
    "backward_weight": ("weight", "backward, weights"),
    "optimizer": ("optimizer", "optimizer"),
    "data": ("data", "data"),
    "checkpoint": ("checkpoint", "checkpoint"),
    "send": ("send", "sending"),
    "warm-up": ("warm-up", "waiting: warm-up"),
    "upstream": ("upstream", "waiting: previous stage"),
    "downstream": ("downstream", "waiting: next stage"),
    "drain": ("drain", "waiting: drain"),
    "replicas": ("replicas", "waiting: replicas"),
    "recv": ("wait", "waiting"),
    "idle": ("idle", "idle"),
}

# White text stands on these by day and night, black text on those below.
_DARK = frozenset({"forward", "backward_input", "backward_weight", "optimizer"})
_BRIGHT = frozenset({"send", "data"})


def seconds(value: float | None) -> str:
    """Write a duration so that a person can compare it."""
    if value is None:
        return "–"
    if value >= 1:
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"  # noqa: PLR2004  # three digits either way
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"  # noqa: PLR2004


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Give round numbers that cover [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def loss_curve(steps: Sequence[StepRecord], height: int = 280) -> str:
    """Draw the loss over the steps, and its running mean."""
    points = thinned(steps)
    top, bottom, right = 12, height - 34, WIDTH - 12
    low = min(point.loss for point in points)
    high = max(point.loss for point in points)
    margin = (high - low or 1.0) * 0.06
    low, high = low - margin, high + margin
    last = max(points[-1].step, points[0].step + 1)

    def x(step: float) -> float:
        return _LEFT + (step - points[0].step) / (last - points[0].step) * (right - _LEFT)

    def y(loss: float) -> float:
        return bottom - (loss - low) / (high - low) * (bottom - top)

    parts = [
        _svg_open(height, f"Loss from {points[0].loss:.3f} at the first step to {points[-1].loss:.3f} at the last")
    ]
    for tick in ticks(low, high):
        parts += [_line(_LEFT, y(tick), right, y(tick)), _text(_LEFT - 10, y(tick) + 4, f"{tick:g}", anchor="end")]
    for tick in ticks(points[0].step, last, 8):
        parts.append(_text(x(tick), bottom + 20, f"{tick:g}", anchor="middle"))
    parts.append(_text(right, bottom + 34, "step", anchor="end"))
    raw = " ".join(f"{x(point.step):.1f},{y(point.loss):.1f}" for point in points)
    mean = " ".join(f"{x(point.step):.1f},{y(loss):.1f}" for point, loss in zip(points, smoothed(points), strict=True))
    parts.append(
        f'<polyline points="{raw}" fill="none" stroke="var(--accent)" stroke-opacity=".32" stroke-width="1.2"/>'
    )
    parts.append(
        f'<polyline points="{mean}" fill="none" stroke="var(--accent)" stroke-width="2.4" stroke-linejoin="round"/>'
    )
    for before, after in itertools.pairwise(points):
        if after.attempt != before.attempt:
            parts.append(
                f'<line x1="{x(after.step):.1f}" x2="{x(after.step):.1f}" y1="{top}" y2="{bottom}" stroke="var(--bad)" '
                f'stroke-dasharray="3 4"><title>attempt {after.attempt} began at step {after.step}</title></line>'
            )
    every = max(1, len(points) // 200)
    for point in points[::every]:
        tip = f"step {point.step}\nloss {point.loss:.4f}\n{point.tokens_per_s:,.0f} tokens/s"
        width = (right - _LEFT) / max(1, len(points[::every]))
        parts.append(
            f'<rect x="{x(point.step) - width / 2:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}" '
            f'fill="transparent" data-tip="{escape(tip)}"/>'
        )
    return "".join([*parts, "</svg>"])


def thinned(steps: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """Give at most as many steps as a screen shows, the last one always."""
    every = math.ceil(len(steps) / _MAX_POINTS)
    kept = list(steps[::every])
    return kept if kept[-1] is steps[-1] else [*kept, steps[-1]]


def smoothed(points: Sequence[StepRecord]) -> list[float]:
    """Give the mean loss around each point, over about a thirtieth of the curve; symmetric, so that it does not lag."""
    reach = len(points) // 60
    means: list[float] = []
    for index in range(len(points)):
        near = min(reach, index, len(points) - 1 - index)
        window = points[index - near : index + near + 1]
        means.append(sum(point.loss for point in window) / len(window))
    return means


def gantt(stages: Sequence[StageTimeline], *, starts: Sequence[float], span_s: float, label: str) -> str:
    """Draw ranks' spans below each other; `span_s` seconds fill the width, so that two charts share a scale."""
    row, gap, axis = 26, 5, 24
    height = len(stages) * (row + gap) + axis
    scale = (WIDTH - _LEFT - 4) / span_s
    parts = [_svg_open(height, label)]
    bottom = height - axis
    for tick in ticks(0, span_s, 8):
        at = _LEFT + tick * scale
        parts += [_line(at, 0, at, bottom), _text(at, bottom + 17, seconds(tick) if tick else "0", anchor="middle")]
    several = len({stage.replica for stage in stages}) > 1
    for index, (stage, start) in enumerate(zip(stages, starts, strict=True)):
        top = index * (row + gap)
        name = f"r{stage.replica} s{stage.stage}" if several else f"stage {stage.stage}"
        parts.append(_text(_LEFT - 10, top + row / 2 + 4, name, anchor="end"))
        parts += _row(stage, start, top, row, scale)
    return "".join([*parts, "</svg>"])


def _row(stage: StageTimeline, start_s: float, top: float, height: float, scale: float) -> Iterator[str]:
    for span in stage.spans:
        x, width = _LEFT + (start_s + span.start_s) * scale, (span.end_s - span.start_s) * scale
        is_wait = span.kind in WAITING
        inset = height * 0.32 if is_wait else 0
        colour = "wait" if is_wait and span.kind is not SpanKind.SEND else CAUSES[span.kind.value][0]
        tip = span_tip(stage, span)
        gap = 0.6 if width > 3 else 0  # noqa: PLR2004  # thinner ones would vanish
        yield (
            f'<rect x="{x:.2f}" y="{top + inset:.1f}" width="{max(width - gap, 0.2):.2f}" '
            f'height="{height - 2 * inset:.1f}" rx="{2.5 if width > 6 and not is_wait else 0}" '  # noqa: PLR2004
            f'fill="var(--{colour})" data-tip="{escape(tip)}"><title>{escape(tip)}</title></rect>'
        )
        letter = _LETTERS.get(span.kind)
        if letter and span.micro_batch is not None and width >= _LETTER_MIN_PX:
            text = f"{letter}{span.micro_batch}" if width >= _LETTER_MIN_PX * 1.5 else str(span.micro_batch)
            yield _text(x + width / 2, top + height / 2 + 4, text, anchor="middle", style="on")


def span_tip(stage: StageTimeline, span: Span) -> str:
    """Say what a span is."""
    name = CAUSES[span.cause if span.cause in CAUSES and span.kind in WAITING else span.kind.value][1]
    batch = f" of micro-batch {span.micro_batch}" if span.micro_batch is not None else ""
    return f"stage {stage.stage}: {name}{batch}\n{seconds(span.end_s - span.start_s)}, from {seconds(span.start_s)}"


def bars(stages: Sequence[StageSummary]) -> str:
    """Draw where a mean step of each rank went, in shares of its wall time."""
    row, gap, axis = 24, 8, 24
    height = len(stages) * (row + gap) + axis
    scale = WIDTH - _LEFT - 4
    parts = [_svg_open(height, "Where each stage's time went, measured")]
    for percent in range(0, 101, 20):
        at = _LEFT + percent / 100 * scale
        parts += [_line(at, 0, at, height - axis), _text(at, height - 7, f"{percent} %", anchor="middle")]
    several = len({stage.replica for stage in stages}) > 1
    for index, stage in enumerate(stages):
        top = index * (row + gap)
        name = f"r{stage.replica} s{stage.stage}" if several else f"stage {stage.stage}"
        parts.append(_text(_LEFT - 10, top + row / 2 + 4, name, anchor="end"))
        parts += _stack(stage, top, row, scale)
    return "".join([*parts, "</svg>"])


def _stack(stage: StageSummary, top: float, height: float, scale: float) -> Iterator[str]:
    total = sum(stage.seconds.values()) or 1.0
    x = float(_LEFT)
    for cause in _in_order(stage.seconds):
        colour, name = CAUSES.get(cause, ("wait", f"waiting: {cause}"))
        share = stage.seconds[cause] / total
        width = share * scale
        tip = f"stage {stage.stage}: {name}\n{share:.1%} of a step, {seconds(stage.seconds[cause])}"
        yield (
            f'<rect x="{x:.2f}" y="{top}" width="{width:.2f}" height="{height}" fill="var(--{colour})" '
            f'data-tip="{escape(tip)}"><title>{escape(tip)}</title></rect>'
        )
        if width > 44:  # noqa: PLR2004  # room for "12.3 %"
            style = "on" if cause in _DARK else "ink" if cause in _BRIGHT else "strong"
            yield _text(x + width / 2, top + height / 2 + 4, f"{share:.1%}", anchor="middle", style=style)
        x += width


def legend(causes: Sequence[str]) -> str:
    """Explain the colours of those causes."""
    items = [CAUSES.get(cause, ("wait", f"waiting: {cause}")) for cause in _in_order(causes)]
    return (
        '<ul class="legend">'
        + "".join(f'<li><i style="background:var(--{colour})"></i>{escape(name)}</li>' for colour, name in items)
        + "</ul>"
    )


def _in_order(causes: Sequence[str] | dict[str, float]) -> list[str]:
    order = list(CAUSES)
    return sorted(causes, key=lambda cause: order.index(cause) if cause in CAUSES else len(order))


def _svg_open(height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="var(--grid)"/>'


def _text(x: float, y: float, text: str, *, anchor: str, style: str = "") -> str:
    styled = f' class="{style}"' if style else ""
    return f'<text{styled} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
