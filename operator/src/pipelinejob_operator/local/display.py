"""Shows a run while it goes: a live picture on a terminal, plain lines elsewhere; and at the end what came out."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelinejob_operator.cluster import Event
from pipelinejob_operator.report.numbers import seconds
from pipelinejob_operator.report.run_view import RunView, StageView, layers
from pipelinejob_operator.report.summary import Pair, RunSummary

_LINE_EVERY_S = 10.0
_BAR_WIDTH = 30


class Display(Protocol):
    """Shows a run to somebody."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and leave the terminal as it was."""

    def note(self, text: str) -> None:
        """Say something once."""

    def event(self, event: Event) -> None:
        """Tell an event of the job."""

    def update(self, view: RunView) -> None:
        """Show how things stand."""


def display_for(console: Console) -> Display:
    """Return the display that suits the console."""
    return LiveDisplay(console) if console.is_terminal and not console.is_dumb_terminal else LineDisplay(console)


class Lines:
    """What displays have in common that print plain lines and leave nothing to tidy up."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def note(self, text: str) -> None:
        """Say something once."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LineDisplay(Lines):
    """Plain lines, one now and then, for logs and pipes."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self._clock = clock
        self._last_step = -1
        self._last_time = float("-inf")

    def event(self, event: Event) -> None:
        """Tell an event of the job."""
        self.note(f"{'!' if event.type == 'Warning' else '·'} {event.reason}: {event.message}")

    def update(self, view: RunView) -> None:
        """Print a line for the first step, then every few seconds."""
        is_first = self._last_step <= 0 < view.step
        if view.step == self._last_step or not (is_first or self._clock() - self._last_time >= _LINE_EVERY_S):
            return
        if view.loss is None or view.step == 0:
            return
        self._last_step, self._last_time = view.step, self._clock()
        bubbles = " ".join(_percent(stage.bubble_ratio) for stage in view.stages)
        self.note(
            f"step {view.step}/{view.steps}  loss {view.loss:.4f}  {_count(view.tokens_per_s)} tokens/s  "
            f"left {_clock(view.eta_s)}  bubble by stage: {bubbles}"
        )


class LiveDisplay:
    """A picture that is drawn again in place; what is said once scrolls by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Say something once."""
        self._console.print(text, highlight=False, markup=False)

    def event(self, event: Event) -> None:
        """Tell an event of the job."""
        style = "yellow" if event.type == "Warning" else "dim"
        self._console.print(Text(f"{event.reason}: {event.message}", style=style))

    def update(self, view: RunView) -> None:
        """Draw how things stand."""
        self._live.update(picture(view))


def picture(view: RunView) -> RenderableType:
    """Draw a run: how far it is, and a line for each stage."""
    return Group(_headline(view), _stage_table(view.stages))


def _headline(view: RunView) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = [Text(view.state.value, style="bold")]
    if view.loss is None:
        cells.append(Text(view.message or "stages are coming up", style="dim"))
    else:
        cells += [
            ProgressBar(total=view.steps, completed=view.step, width=_BAR_WIDTH),
            Text(f"step {view.step}/{view.steps}"),
            Text(f"loss {view.loss:.4f}", style="bold cyan"),
            Text(f"{_count(view.tokens_per_s)} tokens/s"),
            Text(f"{_clock(view.eta_s)} left", style="dim"),
        ]
    if view.restarts:
        cells.append(Text(f"{view.restarts} restarts", style="yellow"))
    line.add_row(*cells)
    return line


def _stage_table(stages: tuple[StageView, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("stage", "layers", "", "utilization", "bubble", "predicted", "memory"):
        table.add_column(name, justify="left" if name in {"stage", "layers", ""} else "right")
    several = any(stage.replica for stage in stages)
    for stage in stages:
        table.add_row(
            f"r{stage.replica} s{stage.stage}" if several else str(stage.stage),
            stage.layers,
            stage.phase,
            _percent(stage.utilization_ratio),
            _percent(stage.bubble_ratio),
            Text(_percent(stage.predicted_bubble_ratio), style="dim"),
            _bytes(stage.memory_bytes),
        )
    return table


def print_summary(console: Console, summary: RunSummary) -> None:
    """Print what came out, measured beside predicted."""
    loss = "–"
    if summary.loss_first is not None and summary.loss_last is not None:
        loss = f"{summary.loss_first:.3f} → {summary.loss_last:.3f} nats/token"
    facts = Table.grid(padding=(0, 3))
    facts.add_row("loss", Text(loss, style="bold cyan"), Text("first step → last", style="dim"))
    facts.add_row("steps", f"{summary.steps} of {summary.steps_wanted}", Text(seconds(summary.training_s), style="dim"))
    facts.add_row("step time", *_both(summary.step_s, seconds))
    facts.add_row("throughput", *_both(summary.tokens_per_s, lambda value: f"{_count(value)} tokens/s"))
    facts.add_row("bubble", *_both(summary.bubble_ratio, _percent))
    facts.add_row("restarts", str(summary.restarts), "")
    console.print(facts)
    console.print(_summary_table(summary))
    crowding = f"; {summary.crowding}" if summary.crowding else ""
    console.print(f"measured (predicted){crowding}", style="dim", markup=False, soft_wrap=True)


def _summary_table(summary: RunSummary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("stage", "layers"):
        table.add_column(name)
    for name in ("utilization", "bubble", "memory"):
        table.add_column(name, justify="right")
        table.add_column("", style="dim")
    several = any(stage.replica for stage in summary.stages)
    for stage in summary.stages:
        table.add_row(
            f"r{stage.replica} s{stage.stage}" if several else str(stage.stage),
            layers(stage.chunks),
            *_beside(stage.utilization_ratio, _percent),
            *_beside(stage.bubble_ratio, _percent),
            *_beside(stage.memory_bytes, _bytes),
        )
    return table


def _both(pair: Pair, write: Callable[[float | None], str]) -> tuple[str, Text]:
    return write(pair.measured), Text(f"predicted {write(pair.predicted)}", style="dim")


def _beside(pair: Pair, write: Callable[[float | None], str]) -> tuple[str, str]:
    return write(pair.measured), f"({write(pair.predicted)})"


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.1%}"


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _bytes(number: float | None) -> str:
    return "–" if number is None else f"{number / 2**20:,.0f} MiB"


def _clock(value: float | None) -> str:
    if value is None:
        return "–"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
