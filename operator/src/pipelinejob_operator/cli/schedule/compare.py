"""`pipelinejob schedule compare`: what all schedules come to for the same costs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from pipelinejob.scheduler.comparison import COMPARABLE, Outcome
from pipelinejob.scheduler.comparison import compare as compared
from pipelinejob.schedules.families import FAMILIES, family
from pipelinejob.schedules.names import ScheduleName
from pipelinejob_operator.cli.given.text_files import check_writable, write_text
from pipelinejob_operator.cli.given.together import refuse
from pipelinejob_operator.cli.schedule.asked import (
    AskedError,
    BlockingOption,
    CapOption,
    ChunksOption,
    CommOption,
    ForwardOption,
    InputOption,
    IntervalOption,
    MicroBatchesOption,
    RanksOption,
    SlowdownOption,
    Times,
    WeightOption,
    schedule_name,
    setting,
)
from pipelinejob_operator.cli.schedule.figures import figures
from pipelinejob_operator.cli.shown.console import console_for_people
from pipelinejob_operator.cli.shown.output import Format, FormatOption, write
from pipelinejob_operator.report.numbers import percent, plain
from pipelinejob_operator.report.pages.schedule import comparison_page
from pipelinejob_operator.report.schedule_view import ScheduleView

_BAR_WIDTH = 20
_BARS_FROM = 104  # columns of the terminal


def compare(
    *,
    ranks: RanksOption,
    micro_batches: MicroBatchesOption,
    chunks: ChunksOption = None,
    forward: ForwardOption = "1",
    backward_input: InputOption = "1",
    backward_weight: WeightOption = "1",
    comm: CommOption = "0",
    slowdown: SlowdownOption = "1",
    no_overlap: BlockingOption = False,
    memory_cap: CapOption = None,
    update_interval: IntervalOption = None,
    schedules: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Only these, with commas between.", show_default="all that train"),
    ] = None,
    output: FormatOption = Format.TABLE,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page: all charts on one time axis.")
    ] = None,
) -> None:
    """Compare schedules by makespan, bubble and memory, for given costs and in their unit."""
    times = Times(
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
        comm=comm,
        slowdown=slowdown,
    )
    asked = setting(
        ranks,
        micro_batches,
        num_chunks=chunks,
        times=times,
        memory_cap=memory_cap,
        update_interval=update_interval,
    )
    check_writable(html, "--html")
    names = COMPARABLE if schedules is None else _names(schedules)
    if not any(family(name).chunk_choice for name in names):
        refuse(given=chunks, option=f"-v {chunks}", why="none of these schedules has a choice of chunks; leave it out")
    if not any(family(name).is_asynchronous for name in names):
        why = "none of these schedules updates within a step; leave it out"
        refuse(given=update_interval, option=f"--update-interval {update_interval}", why=why)
    found, missing = compared(names, asked, overlap=not no_overlap, slowdowns=times.slowdowns(ranks))
    if not found:
        raise AskedError("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    if html is not None:
        views = [
            ScheduleView(outcome=each, title=family(each.name).title, source=family(each.name).source) for each in found
        ]
        write_text(
            html, "--html", comparison_page(views, missing, sizes=f"{ranks} ranks, {micro_batches} micro-batches")
        )
    write([_entry(each) for each in found], output, lambda: _print(found, missing))
    if output is not Format.TABLE:
        _say_missing(missing)


def _names(written: str) -> list[ScheduleName]:
    names = list(dict.fromkeys(schedule_name(word.strip()) for word in written.split(",") if word.strip()))
    if not names:
        raise AskedError("--schedules: names nothing; write names with commas between, as in 1F1B,ZB-V")
    if ScheduleName.CUSTOM in names:
        raise AskedError("--schedules custom: one of your own is drawn by `schedule show custom --file FILE`")
    return names


def _entry(each: Outcome) -> dict[str, Any]:
    return {
        "schedule": each.name.value,
        **figures(each),
        "fits_cap": None if each.caps is None else each.over_cap is None,
        "lower_bound": each.lower_bound_s,
        "distance": each.distance,
        "asynchronous": each.schedule.is_asynchronous,
        "steady_bubble_rate": each.steady_bubble_rate,
    }


def _say_missing(missing: Mapping[ScheduleName, str]) -> None:
    """Name those left out beside the result, which only has those that exist."""
    for name, reason in missing.items():
        typer.echo(f"left out {name}: {reason}", err=True)


def _print(found: Sequence[Outcome], missing: Mapping[ScheduleName, str]) -> None:
    console = console_for_people()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    has_caps = any(each.caps is not None for each in found)
    has_bars = console.width >= _BARS_FROM
    for name in ("schedule", "makespan", *([""] if has_bars else []), "bubble", "by span", "activations", "weights"):
        table.add_column(name, justify="left" if name in {"schedule", ""} else "right", no_wrap=True)
    if has_caps:
        table.add_column("cap", no_wrap=True)
    longest = max(each.simulation.makespan_s for each in found)
    for each in found:
        cells = list(_cells(each, longest))
        if not has_bars:
            cells.pop(2)
        table.add_row(*cells, *_cap(each), style="dim" if each.over_cap is not None else "")
    for name in missing:
        table.add_row(name.value, *["–"] * (len(table.columns) - 1), style="dim")
    console.print(table)
    for line in (*_remarks(found), *(f"{name} does not exist here: {reason}" for name, reason in missing.items())):
        console.print(line, markup=False)
    for line in _footnotes(found, missing):
        console.print(line, style="dim", markup=False)


def _cells(each: Outcome, longest: float) -> tuple[str | Text, ...]:
    simulation = each.simulation
    return (
        Text(each.name.value, style="" if each.over_cap is not None else "bold"),
        plain(simulation.makespan_s),
        _bar(simulation.makespan_s / longest, simulation.bubble_rate),
        percent(simulation.bubble_rate),
        percent(simulation.span_bubble_rate),
        _range(each.peak_activations),
        _range([each.weight_copies * versions for versions in each.weight_versions]),
    )


def _cap(each: Outcome) -> list[str]:
    if each.caps is None:
        return []
    return ["fits" if each.over_cap is None else "over"]


def _bar(share: float, bubble_rate: float) -> Text:
    """Draw a makespan, the bubble pale at its end."""
    width = max(1, round(share * _BAR_WIDTH))
    bubble = round(bubble_rate * width)
    return Text.assemble(("━" * (width - bubble), "blue"), ("╌" * bubble, "dim"))


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{high:g}" if low == high else f"{low:g}–{high:g}"


def _remarks(found: Sequence[Outcome]) -> Iterator[str]:
    """Return what figures alone do not."""
    for each in found:
        if each.over_cap is not None and each.caps is not None:
            held, cap = each.peak_activations[each.over_cap], each.caps[each.over_cap]
            yield f"{each.name} is over the cap: rank {each.over_cap} holds {held:g}, and may hold {cap:g}"
        if each.steady_bubble_rate is not None:
            yield (
                f"{each.name} is asynchronous: its weights are stale, and its figures those of a step that fills and"
                f" empties the pipeline; in between its bubble is {percent(each.steady_bubble_rate)}"
            )
        if not family(each.name).trains:
            yield f"{each.name} trains nothing, so its figures compare with no other's"
        if each.distance is not None:
            yield f"{each.name} is at most {percent(each.distance)} longer than the least on the routes it searches"


def _footnotes(found: Sequence[Outcome], missing: Mapping[ScheduleName, str]) -> list[str]:
    shown = {each.name for each in found} | set(missing)
    hidden = [name.value for name in FAMILIES if name not in shown] if shown >= set(COMPARABLE) else []
    return [
        "bubble: (makespan - ideal) / makespan; by span: with the longest rank's first start to last end as makespan",
        "activations: of how many micro-batches a rank holds them at most; weights: how often it holds its share",
        *([f"not shown: {', '.join(hidden)}; --schedules names what to show"] if hidden else []),
    ]
