"""`pipelinejob schedule show`: one schedule, drawn in the terminal and as picture or page, or written out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from pipelinejob.scheduler.comparison import Outcome, outcome
from pipelinejob.schedules import torch_csv
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.families import described
from pipelinejob.schedules.family import Family, Updates
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.text import parse, render
from pipelinejob.schedules.validate import validate
from pipelinejob.simulation.simulate import simulate
from pipelinejob_operator.cli.given.text_files import check_writable, read_text, write_text
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
    SlowdownOption,
    Times,
    WeightOption,
    numbers,
    schedule_name,
    setting,
)
from pipelinejob_operator.cli.schedule.figures import figures
from pipelinejob_operator.cli.shown.console import chart_width, console_for_people
from pipelinejob_operator.cli.shown.gantt import legend_line, readable_width, row_lines
from pipelinejob_operator.cli.shown.output import Format, write
from pipelinejob_operator.report.marks import shades_of
from pipelinejob_operator.report.numbers import percent, plain
from pipelinejob_operator.report.pages.schedule import schedule_page
from pipelinejob_operator.report.pictures.schedule import schedule_picture
from pipelinejob_operator.report.schedule_view import ScheduleView, idle_shares


class ShowFormat(StrEnum):
    """Forms of a schedule."""

    CHART = "chart"
    JSON = "json"
    YAML = "yaml"
    TEXT = "text"  # the action language
    CSV = "csv"  # torch's form


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A schedule of `schedule list`; or custom, with --file.")],
    *,
    ranks: Annotated[
        int | None, typer.Option("--ranks", "-p", metavar="P", help="Ranks of the pipeline, a device each.")
    ] = None,
    micro_batches: Annotated[
        int | None, typer.Option("--micro-batches", "-m", metavar="M", help="Micro-batches of a step.")
    ] = None,
    chunks: ChunksOption = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The custom schedule: its text form, or torch's CSV."),
    ] = None,
    forward: ForwardOption = "1",
    backward_input: InputOption = "1",
    backward_weight: WeightOption = "1",
    comm: CommOption = "0",
    slowdown: SlowdownOption = "1",
    no_overlap: BlockingOption = False,
    memory_cap: CapOption = None,
    update_interval: IntervalOption = None,
    vertical_sync: Annotated[
        bool, typer.Option("--vertical-sync", help="PipeDream: all ranks use the weights that the first one used.")
    ] = False,
    output: Annotated[
        ShowFormat,
        typer.Option(
            "--output", "-o", help="chart; json or yaml; text: the actions; csv: torch's form.", case_sensitive=False
        ),
    ] = ShowFormat.CHART,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the chart as a picture.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page: chart, memory over time, idle time by cause.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=40, help="Columns of the chart; the terminal's if unset.")] = None,
) -> None:
    """Draw a schedule: what each rank does when, for given costs."""
    times = Times(
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
        comm=comm,
        slowdown=slowdown,
    )
    is_drawn = svg is not None or html is not None
    _refuse_without_effect(output, width=width, slowdown=slowdown, no_overlap=no_overlap, is_drawn=is_drawn)
    check_writable(svg, "--svg")
    check_writable(html, "--html")
    found = schedule_name(name)
    known = described(found)
    _refuse_updates(known, found, vertical_sync=vertical_sync, update_interval=update_interval)
    if found is ScheduleName.CUSTOM or file is not None:
        refuse(
            given=chunks,
            option=f"-v {chunks}",
            why="a schedule of a file says itself how many chunks it has; leave it out",
        )
        schedule, where = _written(found, file, ranks=ranks, micro_batches=micro_batches)
        view = _custom(schedule, where, times, memory_cap, overlap=not no_overlap)
    else:
        if ranks is None or micro_batches is None:
            raise AskedError(f"{found}: how large? Give ranks and micro-batches, as in -p 4 -m 8")
        asked = setting(
            ranks,
            micro_batches,
            num_chunks=chunks,
            times=times,
            memory_cap=memory_cap,
            update_interval=update_interval,
            vertical_sync=vertical_sync,
        )
        played = outcome(found, asked, overlap=not no_overlap, slowdowns=times.slowdowns(ranks))
        view = ScheduleView(outcome=played, title=known.title, source=known.source)
    if svg is not None:
        write_text(svg, "--svg", schedule_picture(view))
    if html is not None:
        write_text(html, "--html", schedule_page(view))
    _write(view, output, width)


def _refuse_without_effect(
    output: ShowFormat, *, width: int | None, slowdown: str, no_overlap: bool, is_drawn: bool
) -> None:
    """Refuse options that this output says nothing of."""
    if output is not ShowFormat.CHART:
        refuse(
            given=width,
            option=f"--width {width}",
            why=f"is of the chart, and -o {output} prints none; give one of them",
        )
    if output in {ShowFormat.TEXT, ShowFormat.CSV} and not is_drawn:
        why = f"changes when things are done, which -o {output} does not say; leave one of them out"
        refuse(given=slowdown != "1", option=f"--slowdown {slowdown}", why=why)
        refuse(given=no_overlap, option="--no-overlap", why=why)


def _refuse_updates(known: Family, name: ScheduleName, *, vertical_sync: bool, update_interval: int | None) -> None:
    """Refuse what is asked of updates within a step where the schedule has none. Raises AskedError."""
    if vertical_sync and known.updates is not Updates.EACH_MICRO_BATCH:
        raise AskedError(f"--vertical-sync: {name} keeps no older weights to agree on; it goes with PipeDream")
    if update_interval is not None and not known.is_asynchronous:
        raise AskedError(f"--update-interval {update_interval}: {name} updates once a step; leave it out")


def _written(
    name: ScheduleName, file: Path | None, *, ranks: int | None, micro_batches: int | None
) -> tuple[Schedule, Path]:
    """Read the schedule of a file, which has to go with what else was asked for.

    Raises AskedError, or ScheduleError for what is no schedule or cannot be played.
    """
    if name is not ScheduleName.CUSTOM:
        raise AskedError(f"--file {file}: a schedule of a file is called custom, not {name}; leave one of the two out")
    if file is None:
        raise AskedError("custom: a schedule of your own is read from a file; name it with --file")
    schedule = _read(file)
    for option, asked, has, of in (
        ("-p", ranks, schedule.num_ranks, "ranks"),
        ("-m", micro_batches, schedule.num_micro_batches, "micro-batches"),
    ):
        if asked not in {None, has}:
            raise AskedError(f"{option} {asked}: {file} has {has} {of}; leave {option} out")
    return schedule, file


def _custom(schedule: Schedule, file: Path, times: Times, memory_cap: str | None, *, overlap: bool) -> ScheduleView:
    num_ranks = schedule.num_ranks
    costs, slowdowns = times.model(num_ranks)(schedule.routes), times.slowdowns(num_ranks)
    played = Outcome(
        name=ScheduleName.CUSTOM,
        simulation=simulate(schedule, costs, overlap=overlap, slowdowns=slowdowns),
        caps=None if memory_cap is None else numbers("--memory-cap", memory_cap, num_ranks, is_positive=True),
    )
    return ScheduleView(outcome=played, title="a schedule of your own", source=str(file))


def _read(file: Path) -> Schedule:
    text = read_text(file, "--file", otherwise="give a schedule's text form, or torch's CSV")
    schedule = torch_csv.read(text) if _is_csv(text) else parse(text)
    validate(schedule)
    return schedule


def _is_csv(text: str) -> bool:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return "," in next(filter(None, lines), "")


def _write(view: ScheduleView, output: ShowFormat, width: int | None) -> None:
    schedule = view.outcome.schedule
    if output is ShowFormat.TEXT:
        typer.echo(render(schedule), nl=False)
    elif output is ShowFormat.CSV:
        typer.echo(torch_csv.write(schedule), nl=False)
    else:
        form = Format.TABLE if output is ShowFormat.CHART else Format(output.value)
        write(_data(view), form, lambda: _draw(view, console_for_people(), width))


def _data(view: ScheduleView) -> dict[str, Any]:
    simulation, schedule = view.outcome.simulation, view.outcome.schedule
    return {
        "schedule": view.outcome.name.value,
        "title": view.title,
        "source": view.source,
        "ranks": schedule.num_ranks,
        "micro_batches": schedule.num_micro_batches,
        "routes": [list(route) for route in schedule.routes],
        "route_of": list(schedule.route_of),
        **figures(view.outcome),
        "actions": [
            [{"action": str(action), "start": start, "end": end} for action, start, end in zip(*rank, strict=True)]
            for rank in zip(schedule.ranks, simulation.started_s, simulation.ended_s, strict=True)
        ],
    }


def _draw(view: ScheduleView, console: Console, asked_width: int | None) -> None:
    simulation = view.outcome.simulation
    has_colours = console.color_system is not None
    width = asked_width or chart_width(console)
    console.print(Text.assemble((view.outcome.name.value, "bold"), f"  {view.title}"))
    console.print(view.source, style="dim", markup=False)
    for line in view.facts:
        console.print(line, markup=False)
    rows = view.rows
    console.print()
    for text in row_lines(rows, width, write=plain, has_colours=has_colours, in_cells=True):
        console.print(text, no_wrap=True, crop=False, soft_wrap=True)
    console.print()
    console.print(legend_line(rows, shades_of(simulation.schedule), has_colours=has_colours))
    shares = ", ".join(f"{cause} {percent(share)}" for cause, share in idle_shares(simulation))
    if shares:
        console.print(f"idle, mean over ranks: {shares}", style="dim")
    wanted = readable_width(rows)
    if wanted > width:
        console.print(f"all numbers fit from --width {wanted} on; --html FILE draws a page", style="dim")
