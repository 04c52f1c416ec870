"""`pipelinejob checkpoints`: which a job has, whether they are whole, and away with the old ones, by the trainer."""

from pathlib import Path
from typing import Annotated

import typer

from pipelinejob.contract.progress import ExitCode
from pipelinejob_operator.cli.exits import Exit
from pipelinejob_operator.cli.trainer import run_trainer
from pipelinejob_operator.local.runfolder import RunFolder

app = typer.Typer(help="List, verify or prune the checkpoints of a job.", no_args_is_help=True, add_completion=False)
_ENDINGS = {ExitCode.OK: Exit.OK, ExitCode.USER_ERROR: Exit.USAGE, 65: Exit.JOB_FAILED, 130: Exit.INTERRUPTED}

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A run's folder, or what spec.checkpoint.path of a job names.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print them as JSON.")]


@app.command("list")
def list_(folder: FolderArgument, *, json: JsonOption = False) -> None:
    """Print which checkpoints there are, newest first. Ends with 1 if one cannot be read."""
    _trainer("list", *(["--json"] if json else []), "--", str(_checkpoints(folder)))


@app.command()
def verify(folder: FolderArgument, *, json: JsonOption = False) -> None:
    """Read all checkpoints, and hold them against their checksums. Ends with 1 if one is damaged."""
    _trainer("verify", *(["--json"] if json else []), "--", str(_checkpoints(folder)))


@app.command()
def prune(
    folder: FolderArgument,
    *,
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="How many whole ones stay, the newest.")],
    older_than: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Delete only those that were written so long ago.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete old checkpoints, while a job trains, too. Damaged ones count for none of those that stay."""
    options = [f"--keep={keep}", f"--older-than={older_than}", *(["--dry-run"] if dry_run else [])]
    _trainer("prune", *options, "--", str(_checkpoints(folder)))


def _checkpoints(folder: Path) -> Path:
    run = RunFolder(folder)
    return run.checkpoints if run.plan.is_file() and run.checkpoints.is_dir() else folder


def _trainer(*arguments: str) -> None:
    run_trainer("checkpoints", *arguments, endings=_ENDINGS)
