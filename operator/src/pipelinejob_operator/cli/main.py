"""The command's entry: its subcommands, and where errors become sentences and exit codes."""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelinejob.base.errors import PipelineJobError
from pipelinejob_operator.cli.exits import EPILOG, Exit, complain, ending_of
from pipelinejob_operator.cli.lazy import LazyCommand

_NAME = "pipelinejob"
_COMMANDS = (
    LazyCommand(
        "run",
        "pipelinejob_operator.cli.run:run",
        summary="Train the manifest's job on this machine, one process a stage; no cluster needed.",
    ),
    LazyCommand(
        "serve",
        "pipelinejob_operator.cli.serve:serve",
        summary=(
            "Answer requests with the manifest's model on this machine, over HTTP as OpenAI does, or those of a file."
        ),
    ),
    LazyCommand(
        "scale",
        "pipelinejob_operator.cli.scale:scale",
        summary="Have a run that goes on train with other replicas, stages, layers or another schedule.",
    ),
    LazyCommand(
        "plan",
        "pipelinejob_operator.cli.plan:plan",
        summary="Print the plan: stages, layers, predicted step time, bubble and memory, and where it would stand.",
    ),
    LazyCommand(
        "line",
        "pipelinejob_operator.cli.line:line",
        summary="Print which jobs of a cluster wait for room, in the order of the line.",
    ),
    LazyCommand(
        "profile",
        "pipelinejob_operator.cli.profile:profile",
        summary=(
            "Measure what each layer of a manifest's model costs on this machine: seconds, memory, links, book-keeping."
        ),
    ),
    LazyCommand(
        "data",
        "pipelinejob_operator.cli.data:app",
        summary="Prepare data to train on, or look at what is prepared.",
    ),
    LazyCommand(
        "validate",
        "pipelinejob_operator.cli.validate:validate",
        summary="Name every error of the manifests by its path, as the API server would; touch nothing unless told to.",
    ),
    LazyCommand(
        "export",
        "pipelinejob_operator.cli.export:export",
        summary="Write a checkpoint, of any split and schedule, as a folder that transformers loads.",
    ),
    LazyCommand(
        "checkpoints",
        "pipelinejob_operator.cli.checkpoints:app",
        summary="List, verify or prune the checkpoints of a job.",
    ),
    LazyCommand(
        "version",
        "pipelinejob_operator.cli.version:version",
        summary="Print this program's version and that of the API it speaks.",
    ),
    LazyCommand(
        "schedule",
        "pipelinejob_operator.cli.schedule:app",
        summary="List, draw and compare micro-batch schedules.",
    ),
)
_BEFORE_IT_IS_DONE = "run"  # the one command that has not done what it was asked for when its reader goes away


class _ReaderGone(Exception):  # noqa: N818  # no error: `| head` has seen enough
    """Nobody reads what is printed."""


class _Commands(TyperGroup):
    """The subcommands; unlike Typer, it tells a reader that went away from a job that failed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in _COMMANDS:
            self.add_command(command)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            if ctx.invoked_subcommand == _BEFORE_IT_IS_DONE:
                raise
            raise _ReaderGone from error
        return result


app = typer.Typer(
    name=_NAME,
    cls=_Commands,
    help="Train or serve a model as a pipeline of stages: on this machine, or look at what a cluster would do.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:  # noqa: FBT001  # Typer's signature
    if is_asked:
        app(args=["version"], prog_name=_NAME)


@app.callback()
def _options(
    *,
    _is_asked: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end."),
    ] = False,
) -> None:
    """Take what is said before a command."""


def main(arguments: Annotated[list[str] | None, "default: the process's own"] = None) -> None:
    """Run the command and end the process with its exit code."""
    try:
        app(args=arguments, prog_name=_NAME)
    except PipelineJobError as error:
        complain(str(error))
        sys.exit(ending_of(error))
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(Exit.INTERRUPTED)
    except _ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the last flush, at the process's end, is quiet
        sys.exit(Exit.OK)
