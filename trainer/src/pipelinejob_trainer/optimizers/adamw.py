"""AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101), as torch.optim.AdamW has it."""

import math
from dataclasses import dataclass

import torch
from torch import (  # the kernels under torch.optim; torch gives them no public names
    _foreach_add_,
    _foreach_addcdiv_,
    _foreach_addcmul_,
    _foreach_div_,
    _foreach_lerp_,
    _foreach_mul_,
    _foreach_sqrt,
)

from pipelinejob_trainer.optimizers.rule import Batch, real


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Two moments a parameter; decay is apart from them."""

    beta1: float
    beta2: float
    epsilon: float
    name: str = "AdamW"
    takes_complex: bool = True

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return both moments, zeros."""
        return {kind: torch.zeros_like(parameter) for kind in ("first_moment", "second_moment")}

    def update(self, batch: Batch) -> None:
        """Update in place."""
        for strength, places in batch.decayed.items():
            _foreach_mul_([batch.parameters[place] for place in places], 1 - batch.rate * strength)
        gradients = real(batch.gradients)
        firsts, seconds = (real(batch.states[kind]) for kind in ("first_moment", "second_moment"))
        _foreach_lerp_(firsts, gradients, 1 - self.beta1)
        _foreach_mul_(seconds, self.beta2)
        _foreach_addcmul_(seconds, gradients, gradients, 1 - self.beta2)
        # Both moments start at zero; dividing by 1 - beta^n takes that bias out again.
        denominators = _foreach_sqrt(seconds)
        _foreach_div_(denominators, math.sqrt(1 - self.beta2**batch.number))
        _foreach_add_(denominators, self.epsilon)
        _foreach_addcdiv_(real(batch.parameters), firsts, denominators, -batch.rate / (1 - self.beta1**batch.number))
