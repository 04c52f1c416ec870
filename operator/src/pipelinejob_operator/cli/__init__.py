"""The `pipelinejob` command: one file a command, and `main`, which turns errors into exit codes."""

from pipelinejob_operator.cli.main import main

__all__ = ["main"]
