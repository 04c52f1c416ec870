"""The loss over the steps, and where each rank's time went, as SVG. Pure: data in, markup out."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelinejob.contract.progress import StepRecord
from pipelinejob_operator.report.looks import in_order, look_of
from pipelinejob_operator.report.marks import Writer
from pipelinejob_operator.report.numbers import percent, ticks
from pipelinejob_operator.report.pictures.svg import LEFT, WIDTH, line, opened, rect, text

_MAX_POINTS = 1200  # more than this the screen can't show
_THIN = 0.2  # of a bar's height stays empty above and below what was waiting
_MIN_SHARE_PX = 44  # room for "12.3 %"


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
        return LEFT + (step - points[0].step) / (last - points[0].step) * (right - LEFT)

    def y(loss: float) -> float:
        return bottom - (loss - low) / (high - low) * (bottom - top)

    parts = [opened(height, f"Loss from {points[0].loss:.3f} at the first step to {points[-1].loss:.3f} at the last")]
    for tick in ticks(low, high):
        parts += [line(LEFT, y(tick), right, y(tick)), text(LEFT - 10, y(tick) + 4, f"{tick:g}", anchor="end")]
    for tick in ticks(points[0].step, last, 8):
        parts.append(text(x(tick), bottom + 20, f"{tick:g}", anchor="middle"))
    parts.append(text(right, bottom + 34, "step", anchor="end"))
    raw = " ".join(f"{x(point.step):.1f},{y(point.loss):.1f}" for point in points)
    mean = " ".join(f"{x(point.step):.1f},{y(loss):.1f}" for point, loss in zip(points, smoothed(points), strict=True))
    parts.append(f'<polyline class="loss raw" points="{raw}"/><polyline class="loss" points="{mean}"/>')
    for before, after in itertools.pairwise(points):
        if after.attempt != before.attempt:
            tip = f"<title>attempt {after.attempt} began at step {after.step}</title>"
            mark = line(x(after.step), top, x(after.step), bottom, style="attempt")
            parts.append(mark.removesuffix("/>") + f">{tip}</line>")
    every = max(1, len(points) // 200)
    for point in points[::every]:
        tip = f"step {point.step}\nloss {point.loss:.4f}\n{point.tokens_per_s:,.0f} tokens/s"
        width = (right - LEFT) / max(1, len(points[::every]))
        parts.append(rect(x(point.step) - width / 2, top, width, bottom - top, style="unseen", tip=tip))
    return "".join([*parts, "</svg>"])


def thinned(steps: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """Return at most as many steps as a screen can show, always with the last one."""
    every = math.ceil(len(steps) / _MAX_POINTS)
    kept = list(steps[::every])
    return kept if kept[-1] is steps[-1] else [*kept, steps[-1]]


def smoothed(points: Sequence[StepRecord]) -> list[float]:
    """Return the mean loss around each point, symmetric, over about a thirtieth of the curve."""
    reach = len(points) // 60
    means: list[float] = []
    for index in range(len(points)):
        near = min(reach, index, len(points) - 1 - index)
        window = points[index - near : index + near + 1]
        means.append(sum(point.loss for point in window) / len(window))
    return means


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Where one rank's time went: seconds by span kind, or by cause of a wait."""

    name: str
    seconds: Mapping[str, float]


def bars(found: Sequence[Bar], *, label: str, write: Writer, width: float = WIDTH) -> str:
    """Draw where a step of each rank went, in shares of its time."""
    row, gap, axis = 24, 8, 24
    height = len(found) * (row + gap) + axis
    scale = width - LEFT - 4
    parts = [opened(height, label, width=width)]
    for share in range(0, 101, 20):
        at = LEFT + share / 100 * scale
        parts += [line(at, 0, at, height - axis), text(at, height - 7, f"{share} %", anchor="middle")]
    for index, bar in enumerate(found):
        top = index * (row + gap)
        parts.append(text(LEFT - 10, top + row / 2 + 4, bar.name, anchor="end"))
        parts += _stack(bar, top, row, scale, write)
    return "".join([*parts, "</svg>"])


def _stack(bar: Bar, top: float, height: float, scale: float, write: Writer) -> Iterator[str]:
    total = sum(bar.seconds.values()) or 1.0
    x = float(LEFT)
    for name in in_order(bar.seconds):
        look, spent = look_of(name), bar.seconds[name]
        width = spent / total * scale
        tip = f"{bar.name}: {look.name}\n{percent(spent / total)} of a step, {write(spent)}"
        inset = 0.0 if look.is_work else round(height * _THIN)
        yield rect(x, top + inset, max(width - 1, 0), height - 2 * inset, style=look.key, tip=tip)
        if width > _MIN_SHARE_PX:
            style = look.ink() if look.is_work else "strong"
            yield text(x + width / 2, top + height / 2 + 4, percent(spent / total), anchor="middle", style=style)
        x += width
