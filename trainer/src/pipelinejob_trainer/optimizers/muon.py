"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/), as torch.optim.Muon has it.

The momentum of a hidden layer's matrix is made orthogonal, all its singular values about 1, and
scaled by the matrix's shape. What is no such matrix follows another rule (`choice.py`).
"""

import math
from dataclasses import dataclass

import torch

from pipelinejob.spec.optimization import MuonScale
from pipelinejob_trainer.optimizers.rule import Batch

# Of the quintic whose slope at zero is steepest; torch's and Jordan's.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPSILON = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon:
    """A running mean of gradients a matrix."""

    momentum: float
    nesterov: bool
    steps: int
    scale: MuonScale
    name: str = "Muon"
    takes_complex: bool = False

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the running mean, zeros."""
        return {"gradient_mean": torch.zeros_like(parameter)}

    def update(self, batch: Batch) -> None:
        """Update in place."""
        means = batch.states["gradient_mean"]
        for place, (parameter, gradient, mean) in enumerate(zip(batch.parameters, batch.gradients, means, strict=True)):
            if not parameter.numel():
                continue
            mean.lerp_(gradient, 1 - self.momentum)
            direction = gradient.lerp(mean, self.momentum) if self.nesterov else mean
            update = orthogonal(direction, self.steps)
            with torch.no_grad():
                parameter.mul_(1 - batch.rate * batch.decay_of(place))
                parameter.add_(update, alpha=-batch.rate * _scale(self.scale, parameter.shape))


def orthogonal(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """Return U V' of a matrix U S V', nearly, in bf16: so many iterations of Newton and Schulz."""
    is_tall = matrix.size(0) > matrix.size(1)
    found = matrix.to(torch.bfloat16, copy=True)
    found = found.T if is_tall else found
    found.div_(found.norm().clamp(min=_EPSILON))  # so that no singular value is above 1
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), found, beta=_A)
    return found.T if is_tall else found


def _scale(kind: MuonScale, shape: torch.Size) -> float:
    rows, columns = shape
    if kind is MuonScale.MATCH_ADAMW:  # Liu et al. 2025, arXiv 2502.16982: the size that an update of AdamW has
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
