"""`pipelinejob scale`: another number of replicas for a run that goes on, as `kubectl scale` has it in a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.scaling import scalable, scaled
from pipelinejob_operator.validation.validate import validate_change


def scale(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run that goes on.")],
    *,
    replicas: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many replicas of the pipeline there are to be.")
    ],
) -> None:
    """Have a run that goes on train with another number of replicas.

    What it makes of that, it says itself.
    """
    run = RunFolder(folder)
    job = scalable(run.read_running_job())
    validate_change(job, scaled(job, replicas))
    run.ask_for_replicas(replicas)
    typer.echo(f"{run.relative()}: {replicas} {'replica' if replicas == 1 else 'replicas'} asked for")
