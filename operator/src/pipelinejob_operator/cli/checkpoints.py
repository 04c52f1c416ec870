"""`pipelinejob checkpoints`: what a folder of checkpoints holds, whether it is whole, what may go, by the trainer."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelinejob.contract.progress import ExitCode
from pipelinejob_operator.cli.exits import Exit

app = typer.Typer(help="List, verify or prune checkpoints.", no_args_is_help=True, add_completion=False)
_ENDINGS: dict[int, Exit] = {ExitCode.OK: Exit.OK, ExitCode.USER_ERROR: Exit.USAGE}

_Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of the checkpoints: runs/<name>/checkpoints, or the volume's.")
]


@app.command("list")
def list_(
    folder: _Folder, *, json: Annotated[bool, typer.Option("--json", help="Print them as a list in JSON.")] = False
) -> None:
    """Print step, loss and size of each checkpoint, the newest first, and which are damaged."""
    _trainer("list", str(folder), *(["--json"] if json else []))


@app.command()
def verify(folder: _Folder) -> None:
    """Read all of every checkpoint, and hold it against its checksums."""
    _trainer("verify", str(folder))


@app.command()
def prune(
    folder: _Folder, *, keep: Annotated[int, typer.Option(min=1, metavar="N", help="How many whole ones stay.")]
) -> None:
    """Delete what is older than the newest N that are whole.

    Damaged ones count as none, so that what a run would go on from is never deleted.
    """
    _trainer("prune", str(folder), f"--keep={keep}")


def _trainer(*arguments: str) -> None:
    command = [sys.executable, "-m", "pipelinejob_trainer", "checkpoints", *arguments]
    code = subprocess.run(command, check=False).returncode
    raise typer.Exit(_ENDINGS.get(code, Exit.JOB_FAILED))
