"""`pipelinejob scale`: other replicas, stages, layers or another schedule for a run that goes on."""

from pathlib import Path
from typing import Annotated

import typer

from pipelinejob.schedules.names import ScheduleName
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.scaling import Wish, scalable, scaled
from pipelinejob_operator.validation.validate import validate_change


def scale(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run that goes on.")],
    *,
    replicas: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many replicas of the pipeline there are to be.")
    ] = None,
    stages: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many stages; with recovery.inPlace: true.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="The layers of each stretch, as spec.partition.layers; by cost if unset."),
    ] = None,
    schedule: Annotated[
        ScheduleName | None, typer.Option(metavar="NAME", help="Another schedule; with recovery.inPlace: true.")
    ] = None,
) -> None:
    """Have a run that goes on train with other replicas, stages, layers or another schedule.

    What it makes of that, it says itself.
    """
    wish = Wish(replicas=replicas, stages=stages, layers=_numbers(layers), schedule=schedule)
    if not wish.words:
        raise typer.BadParameter("nothing is asked for; give --replicas, --stages, --layers or --schedule")
    run = RunFolder(folder)
    job = scalable(run.read_running_job())
    validate_change(job, scaled(job, wish))
    run.ask_for(wish.model_dump_json())
    typer.echo(f"{run.relative()}: {wish.words} asked for")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"--layers {text}: write a number of layers for each stretch, as in 4,3,3")
    return tuple(map(int, parts))
