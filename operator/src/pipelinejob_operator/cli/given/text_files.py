"""Text files named by options: read and written, with one sentence for what cannot be."""

import stat
from pathlib import Path

import typer

from pipelinejob.base.errors import PipelineJobError


class FileError(PipelineJobError):
    """A file given by an option is not what it should be."""


def read_text(file: Path, option: str, *, otherwise: str = "name a file of JSON or YAML") -> str:
    """Read a file that an option names; `otherwise` says what to do if it is no text.

    Raises FileError.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{option} {file}: {error.strerror}; name a file that can be read") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{option} {file}: is no text; {otherwise}") from error


def check_writable(file: Path | None, option: str) -> None:
    """Check that a file named by an option can be written, before the work that it is for.

    Raises FileError.
    """
    if file is None or (file.exists() and not stat.S_ISREG(file.stat().st_mode) and not file.is_dir()):
        return  # a pipe or a device; opening one can wait for its reader
    is_new = not file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise _unwritable(file, option, error) from error
    if is_new:
        file.unlink()


def write_text(file: Path, option: str, content: str) -> None:
    """Write a file named by an option, and say so on standard error.

    Raises FileError.
    """
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise _unwritable(file, option, error) from error
    typer.echo(f"wrote {file}", err=True)


def _unwritable(file: Path, option: str, error: OSError) -> FileError:
    return FileError(f"{option} {file}: {error.strerror}; name a file that can be written")
