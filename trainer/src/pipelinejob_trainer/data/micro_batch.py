"""What is read of the data for one micro-batch."""

from typing import NamedTuple

import torch

from pipelinejob_trainer.base.targets import IGNORED

__all__ = ["IGNORED", "Inputs", "MicroBatch"]


class MicroBatch(NamedTuple):
    """One micro-batch: `tokens` go into the first stage, `targets` into the loss; each int64 (rows, length).

    A target of `IGNORED` does not count. `positions`, int64 (rows, length), are each token's place
    in its own document; None where a sequence is one document.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor | None = None


class Inputs(NamedTuple):
    """What a first layer gets that takes more than token ids: positions, as in `MicroBatch`."""

    tokens: torch.Tensor
    positions: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """The bytes of both."""
        return self.tokens.nbytes + (0 if self.positions is None else self.positions.nbytes)
