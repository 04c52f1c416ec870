"""Files that outlive the machine: what was written is on disk when a call returns, and no name stands for half."""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes, *, scratch: Path | None = None) -> None:
    """Write a file so that it is there whole or as it was before, whenever the machine stops.

    `scratch` is where it is written first, on the same disk; by default beside it.
    """
    temporary = scratch or path.with_name(f".{path.name}.new")
    write_durably(temporary, content)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
