"""Commands that the trainer does, on this terminal: it holds what needs torch, and what reads its files."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import typer

from pipelinejob_operator.cli.exits import Exit


def run_trainer(*arguments: str, endings: Mapping[int, Exit]) -> NoReturn:
    """Let the trainer do it, and end as it ends: by `endings`, with 1 for all other codes of its own."""
    command: Sequence[str] = (sys.executable, "-m", "pipelinejob_trainer", *arguments)
    with subprocess.Popen(command) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # it had it too, and says so itself
                continue
    raise typer.Exit(endings.get(code, Exit.JOB_FAILED))
