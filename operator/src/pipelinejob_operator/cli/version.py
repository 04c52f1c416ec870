"""`pipelinejob version`: this program's version and that of the API it speaks."""

from importlib.metadata import version as installed_version

import typer

from pipelinejob.base import names
from pipelinejob_operator.cli.shown.output import Format, FormatOption, write


def version(output: FormatOption = Format.TABLE) -> None:
    """Print this program's version and that of the API it speaks."""
    found = {"version": installed_version("pipelinejob"), "api": names.API_VERSION}
    write(found, output, lambda: typer.echo(f"pipelinejob {found['version']} ({found['api']})"))
