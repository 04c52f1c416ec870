"""Training text: bytes as tokens, in an order that is a pure function of the seed and the position.

The text is cut into windows of one sequence; each epoch visits every window once, in an order and from an offset of its
own. Nothing is kept between batches, so a run that resumes at a step reads exactly what a run that never stopped would
have read there, and a step's sequences are the same however they are shared out to replicas and micro-batches, equal
ones or not.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pipelinejob.spec import Data, Evaluation, ScheduleSpec
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.text import Readable, evaluation_text, training_text

_WORD = 2**64 - 1


def open_dataset(
    data: Data,
    *,
    schedule: ScheduleSpec,
    replicas: int,
    seed: int,
    vocabulary_size: int | None = None,
    evaluation: Evaluation | None = None,
) -> "Dataset":
    """Open the text that a job trains on: all of it, or what its evaluation leaves.

    `vocabulary_size` bounds the tokens; None bounds nothing. Raises UserError when the text is missing or too short.
    """
    return Dataset(
        text=training_text(data, evaluation),
        sequence_length=data.sequence_length,
        rows=schedule.micro_batch_sizes,
        replicas=replicas,
        seed=seed,
        vocabulary_size=vocabulary_size,
    )


def open_evaluation(data: Data, evaluation: Evaluation, *, beside: "Dataset") -> "Dataset":
    """Open the text that a job is evaluated on, beside what it trains on; step i is batch i of every evaluation.

    Raises UserError when the text is missing or too short.
    """
    return replace(beside, text=evaluation_text(data, evaluation))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A job's batches. Steps, replicas and micro-batches are counted as everywhere: step 1 is the first.

    `rows` are the sequences of each micro-batch of a step of one replica.
    """

    text: Readable
    sequence_length: int
    rows: tuple[int, ...]
    replicas: int
    seed: int
    vocabulary_size: int | None = None

    def batch(self, step: int, replica: int, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give inputs and targets, each int64 (rows[micro_batch], sequence_length).

        Raises UserError for a token outside the vocabulary.
        """
        first = ((step - 1) * self.replicas + replica) * sum(self.rows) + sum(self.rows[:micro_batch])
        windows = [self._window(sequence) for sequence in range(first, first + self.rows[micro_batch])]
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
