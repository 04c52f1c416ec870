"""How the command ends, and what it says of errors that a person can mend."""

from enum import IntEnum

import typer

from pipelinejob.base.errors import InvalidManifestError, NoPlacementError, PipelineJobError, SpecError


class Exit(IntEnum):
    """Exit codes; documented in docs/cli.md and in --help."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    INVALID_MANIFEST = 3
    DOES_NOT_FIT = 4
    FOLDER = 5
    INTERRUPTED = 130


EPILOG = (
    "Exit codes: 0 done · 1 the job failed · 2 wrong usage · 3 invalid manifest · 4 it does not fit · "
    "5 the output folder holds something else · 130 interrupted"
)


def ending_of(error: PipelineJobError) -> Exit:
    """Return the exit code of an error."""
    if isinstance(error, InvalidManifestError | SpecError):
        return Exit.INVALID_MANIFEST
    if isinstance(error, NoPlacementError):
        return Exit.DOES_NOT_FIT
    from pipelinejob_operator.local.runfolder import RunFolderError  # noqa: PLC0415  # slow, and only for what failed

    if isinstance(error, RunFolderError):
        return Exit.FOLDER
    return Exit.USAGE


def complain(text: str) -> None:
    """Print what is wrong to standard error."""
    typer.echo(f"error: {text}", err=True)
