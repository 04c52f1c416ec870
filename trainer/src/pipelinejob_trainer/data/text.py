"""Text: files as one long array of bytes; which part is for training and which for evaluation.

Evaluation uses a separate text, or the end of the training text, which is then not trained on.
"""

import glob
import os
import sysconfig
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelinejob.spec.job import Data, Evaluation
from pipelinejob_trainer.base.errors import UserError

# Folders of the standard library that hold no text of it: what users installed, and tests with
# deliberately odd bytes.
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_PARTS = 20  # of a training text; the last one is what is evaluated on, where nothing else is given


class Readable(Protocol):
    """Bytes by their offset."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    def read(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        """Read bytes [offset, offset + count)."""


class Text:
    """Files, one after the other, as one long array of bytes that is never in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [(file, size) for file in files if (size := file.stat().st_size)]
        self._ends = list(accumulate(size for _, size in self._files))
        self.size = self._ends[-1] if self._ends else 0

    def read(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        """Read bytes [offset, offset + count).

        Raises UserError when a file has become shorter than it was.
        """
        pieces = []
        place = bisect_right(self._ends, offset)
        while count:
            file, size = self._files[place]
            begin = offset - (self._ends[place] - size)
            length = min(count, size - begin)
            pieces.append(_read(file, begin, length))
            place, offset, count = place + 1, offset + length, count - length
        return np.frombuffer(b"".join(pieces), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """`size` bytes of a text, from `begin` on."""

    text: Readable
    begin: int
    size: int

    def read(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        return self.text.read(self.begin + offset, count)


def training_text(data: Data, evaluation: Evaluation | None = None) -> Readable:
    """Open the text to train on.

    Raises UserError when it is missing, or too short for a sequence.
    """
    text: Readable = _given_text(data)
    if evaluation is not None and evaluation.is_held_out:
        text = Excerpt(text, 0, text.size - text.size // _PARTS)
    return _long_enough(text, data, "spec.data: the text", "give more text")


def evaluation_text(data: Data, evaluation: Evaluation) -> Readable:
    """Open the text to evaluate on.

    Raises UserError when it is missing, or too short for a sequence.
    """
    if evaluation.paths is not None:
        text = Text(_matching_files("spec.evaluation.paths", evaluation.paths))
        return _long_enough(text, data, "spec.evaluation.paths: the text", "give more text")
    whole = _given_text(data)
    size = whole.size // _PARTS
    end = Excerpt(whole, whole.size - size, size)
    return _long_enough(end, data, f"spec.evaluation: the last {100 // _PARTS} % of the text", "give evaluation.paths")


def _given_text(data: Data) -> Text:
    files = _stdlib_files() if data.corpus is not None else _matching_files("spec.data.paths", data.paths or ())
    return Text(files)


def _long_enough(text: Readable, data: Data, what: str, way_out: str) -> Readable:
    if text.size <= data.sequence_length:
        raise UserError(
            "DataTooShort",
            f"{what} has {text.size} bytes, one sequence needs {data.sequence_length + 1}; {way_out} or a smaller"
            " spec.data.sequenceLength",
        )
    return text


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if not _NOT_STDLIB & set(file.relative_to(root).parts))
    if not files:
        raise UserError(
            "DataNotFound",
            f"spec.data.corpus python-stdlib: {root} holds no .py files in this image; use spec.data.paths",
        )
    return files


def _matching_files(field: str, patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 # Path.glob takes no absolute pattern
        matches = [path for path in map(Path, found) if path.is_file()]
        if not matches:
            raise UserError(
                "DataNotFound",
                f"{field} {pattern!r} matches no file here; mount the data in every first and last stage,"
                " or correct the pattern",
            )
        files += matches
    return files


def _read(file: Path, begin: int, length: int) -> bytes:
    # Opened for each read: a corpus of many files would run out of descriptors, and the page cache
    # makes this ~3 µs.
    try:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            piece = os.pread(descriptor, length, begin)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            "DataUnreadable", f"spec.data: cannot read {file}: {error.strerror}; make it readable for the trainer"
        ) from error
    if len(piece) < length:
        raise UserError(
            "DataChanged",
            f"spec.data: {file} became shorter while it was being trained on; keep the text unchanged during a run",
        )
    return piece
