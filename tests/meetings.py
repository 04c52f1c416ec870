"""Tensor groups of which one rank alone is there."""

from __future__ import annotations

import torch

from pipelinejob_trainer.communication.tensor_group import TensorGroup


class Unmet(TensorGroup):
    """A group whose other ranks are not there: what it would exchange is counted; they have what it has, or nothing."""

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes_exchanged += (self.size - 1) * tensor.nbytes
        return torch.stack([tensor] * self.size)

    def scattered(self, tensors: torch.Tensor) -> torch.Tensor:
        self.bytes_exchanged += (self.size - 1) * tensors[0].nbytes
        return tensors[self.rank].clone()

    def _reduce(self, tensor: torch.Tensor, operation: object) -> None:
        del operation
        self.bytes_exchanged += 2 * (self.size - 1) * tensor.nbytes // self.size
