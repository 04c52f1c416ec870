"""Gradient descent with momentum (Sutskever et al., 2013), as torch.optim.SGD has it.

Decay is part of the gradient, as there: no optimiser's that divides by the gradient's size.
"""

from dataclasses import dataclass

import torch
from torch import _foreach_add_, _foreach_mul_  # see adamw.py

from pipelinejob_trainer.optimizers.rule import Batch, real


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """A sum of past gradients a parameter; nothing without momentum."""

    momentum: float
    nesterov: bool
    name: str = "SGD"
    takes_complex: bool = True

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the sum so far, zeros."""
        return {"momentum": torch.zeros_like(parameter)} if self.momentum else {}

    def update(self, batch: Batch) -> None:
        """Update in place."""
        gradients, parameters = real(batch.gradients), real(batch.parameters)
        for strength, places in batch.decayed.items():
            _foreach_add_([gradients[at] for at in places], [parameters[at] for at in places], alpha=strength)
        if self.momentum:
            sums = real(batch.states["momentum"])
            _foreach_mul_(sums, self.momentum)
            _foreach_add_(sums, gradients)
            if self.nesterov:
                _foreach_add_(gradients, sums, alpha=self.momentum)
            else:
                gradients = sums
        _foreach_add_(parameters, gradients, alpha=-batch.rate)
