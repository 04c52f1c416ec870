"""The command's entry: its subcommands, and the one border where errors become sentences and exit codes."""

import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from pipelinejob import names
from pipelinejob.errors import PipelineJobError
from pipelinejob_operator.cli.exits import EPILOG, Exit, complain, ending_of
from pipelinejob_operator.cli.output import Format, FormatOption, write
from pipelinejob_operator.cli.plan import plan
from pipelinejob_operator.cli.profile import profile
from pipelinejob_operator.cli.run import run
from pipelinejob_operator.cli.schedule import app as schedule
from pipelinejob_operator.cli.validate import validate

app = typer.Typer(
    name="pipelinejob",
    help="Train a model as a pipeline of stages: on this machine, or look at what a cluster would do.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(plan)
app.command()(profile)
app.command()(validate)
app.add_typer(schedule, name="schedule")


@app.command()
def version(output: FormatOption = Format.TABLE) -> None:
    """Print this program's version and that of the API it speaks."""
    found = {"version": installed_version("pipelinejob"), "api": names.API_VERSION}
    write(found, output, lambda: typer.echo(f"pipelinejob {found['version']} ({found['api']})"))


def main(arguments: Annotated[list[str] | None, "default: the process's own"] = None) -> None:
    """Run the command and end the process with its exit code."""
    try:
        app(args=arguments)
    except PipelineJobError as error:
        complain(str(error))
        sys.exit(ending_of(error))
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:  # the reader went away, as `| head` does
        sys.stderr.close()
        sys.exit(Exit.OK)
