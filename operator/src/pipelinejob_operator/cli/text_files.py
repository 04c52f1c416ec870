"""Text files that options name: read, and written with a word of it; what cannot be is said in one sentence."""

from pathlib import Path

import typer

from pipelinejob.errors import PipelineJobError


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


def write_text(file: Path, option: str, content: str) -> None:
    """Write a file that an option asks for, and say so beside the result.

    Raises FileError.
    """
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise FileError(f"{option} {file}: {error.strerror}; name a file that can be written") from error
    typer.echo(f"wrote {file}", err=True)
