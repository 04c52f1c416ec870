"""Training text: bytes as tokens, in an order that is a pure function of the seed and the position.

The text is cut into windows of one sequence; each epoch visits every window once, in an order and from an offset of its
own. Nothing is kept between batches, so a run that resumes at a step reads exactly what a run that never stopped would
have read there, and a step's sequences are the same however they are shared out to replicas and micro-batches.
"""

import glob
import sysconfig
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelinejob.spec import Data, Schedule
from pipelinejob_trainer.errors import UserError

# Folders of the standard library that hold no text of it: what users installed, and tests with deliberately odd bytes.
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_WORD = 2**64 - 1


def open_dataset(
    data: Data, *, schedule: Schedule, replicas: int, seed: int, vocabulary_size: int | None = None
) -> "Dataset":
    """Open the text that a job trains on.

    `vocabulary_size` bounds the tokens; None bounds nothing. Raises UserError when the text is missing or too short.
    """
    files = _stdlib_files() if data.corpus is not None else _matching_files(data.paths or ())
    text = Text(files)
    if text.size <= data.sequence_length:
        raise UserError(
            "DataTooShort",
            f"spec.data: the text has {text.size} bytes, one sequence needs {data.sequence_length + 1};"
            " give more text or a smaller sequenceLength",
        )
    return Dataset(
        text=text,
        sequence_length=data.sequence_length,
        micro_batches=schedule.micro_batches,
        micro_batch_size=schedule.micro_batch_size,
        replicas=replicas,
        seed=seed,
        vocabulary_size=vocabulary_size,
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The job's batches. Steps, replicas and micro-batches are counted as everywhere: step 1 is the first."""

    text: Text
    sequence_length: int
    micro_batches: int
    micro_batch_size: int
    replicas: int
    seed: int
    vocabulary_size: int | None = None

    def batch(self, step: int, replica: int, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give inputs and targets, each int64 (micro_batch_size, sequence_length).

        Raises UserError for a token outside the vocabulary.
        """
        number = ((step - 1) * self.replicas + replica) * self.micro_batches + micro_batch
        first = number * self.micro_batch_size
        windows = [self._window(sequence) for sequence in range(first, first + self.micro_batch_size)]
        tokens = torch.from_numpy(np.stack(windows).astype(np.int64))
        self._check(tokens)
        return tokens[:, :-1], tokens[:, 1:]

    def _window(self, sequence: int) -> npt.NDArray[np.uint8]:
        length = self.sequence_length
        num_windows = max(1, (self.text.size - length) // length)
        epoch, place = divmod(sequence, num_windows)
        # Each epoch cuts the text elsewhere, so that no token is always the last of its window.
        num_offsets = min(length, self.text.size - num_windows * length)
        offset = mix(self.seed, epoch) % num_offsets
        window = _shuffled(place, num_windows, key=mix(self.seed, epoch, 1))
        return self.text.read(offset + window * length, length + 1)

    def _check(self, tokens: torch.Tensor) -> None:
        if self.vocabulary_size is None:
            return
        largest = int(tokens.max())
        if largest >= self.vocabulary_size:
            raise UserError(
                "VocabularyTooSmall",
                f"spec.model.gpt.vocabularySize: the text has byte {largest} but the vocabulary ends at"
                f" {self.vocabulary_size - 1}; tokens are bytes, so use 256",
            )


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if not _NOT_STDLIB & set(file.relative_to(root).parts))
    if not files:
        raise UserError(
            "DataNotFound",
            f"spec.data.corpus python-stdlib: {root} holds no .py files in this image; use spec.data.paths",
        )
    return files


def _matching_files(patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 # Path.glob takes no absolute pattern
        matches = [path for path in map(Path, found) if path.is_file()]
        if not matches:
            raise UserError(
                "DataNotFound",
                f"spec.data.paths {pattern!r} matches no file here; mount the data in every first and last stage,"
                " or mend the pattern",
            )
        files += matches
    return files


def _read(file: Path, begin: int, length: int) -> bytes:
    # Opened for each read: a corpus of many files would run out of descriptors, and the page cache makes this ~10 µs.
    try:
        with file.open("rb", buffering=0) as opened:
            opened.seek(begin)
            piece = opened.read(length)
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


def _shuffled(place: int, size: int, *, key: int) -> int:
    """Give where `place` goes in a pseudo-random permutation of range(size), without holding the permutation.

    A Feistel network permutes a power of four that covers the range; walking on until the range is met again keeps it a
    permutation (Black and Rogaway, 2002). Fewer than four walks on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn, right) & mask)
        place = left << half | right
        if place < size:
            return place


def mix(*values: int) -> int:
    """Hash integers to 64 bits (splitmix64, folded): the one source of everything here that looks random."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state
