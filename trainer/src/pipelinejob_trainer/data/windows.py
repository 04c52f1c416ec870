"""Text as tokens (its bytes), cut into windows of one sequence.

Each epoch visits every window once, in an order and from an offset of its own.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.data.position import TextIdentity, identity_of
from pipelinejob_trainer.data.shuffling import shuffled
from pipelinejob_trainer.data.text import Readable
from pipelinejob_trainer.data.tokens.packing import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteWindows:
    """The sequences of a text that is read as bytes; `vocabulary_size` limits the tokens (None: no limit)."""

    text: Readable
    sequence_length: int
    seed: int
    vocabulary_size: int | None = None

    def sample(self, number: int) -> Row:
        """Return sequence `number`, counted from 0.

        Raises UserError for a token outside the vocabulary.
        """
        window = self._window(number).astype(np.int64)
        self._check(window)
        return Row(window[:-1], window[1:])

    def identity(self) -> TextIdentity:
        """Read what identifies the text."""
        return identity_of(self.text)

    def _window(self, sequence: int) -> npt.NDArray[np.uint8]:
        length = self.sequence_length
        num_windows = max(1, (self.text.size - length) // length)
        epoch, place = divmod(sequence, num_windows)
        # Each epoch cuts the text elsewhere, so that no token is always the last of its window.
        num_offsets = min(length, self.text.size - num_windows * length)
        epoch_key = mix(self.seed, epoch)
        offset = epoch_key % num_offsets
        window = shuffled(place, num_windows, key=mix(1, state=epoch_key))
        return self.text.read(offset + window * length, length + 1)

    def _check(self, tokens: npt.NDArray[np.int64]) -> None:
        if self.vocabulary_size is None:
            return
        largest = int(tokens.max())
        if largest >= self.vocabulary_size:
            raise UserError(
                "VocabularyTooSmall",
                f"spec.model: vocabularySize: the text has byte {largest} but the vocabulary ends at"
                f" {self.vocabulary_size - 1}; text that is read as bytes needs 256",
            )
