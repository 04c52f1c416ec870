"""Tensor groups of which one rank alone is there."""

from __future__ import annotations

import torch

from pipelinejob_trainer.communication.tensor_group import TensorGroup


class Unmet(TensorGroup):
    """A group whose other ranks are not there: what it would exchange is counted, and all have nothing."""

    def _reduce(self, tensor: torch.Tensor, operation: object) -> None:
        del operation
        self.bytes_exchanged += 2 * (self.size - 1) * tensor.nbytes // self.size
