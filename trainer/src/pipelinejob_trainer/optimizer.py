"""AdamW over a rank's parameters, the learning rate of a step, and clipping by the gradient norm of the whole model.

The arithmetic is torch.optim.AdamW's (Loshchilov and Hutter, 2019, arXiv 1711.05101) on torch's own foreach kernels.
Only its class is not used: making one imports torch._dynamo, four seconds of a stage's start, and it names its state by
position, where a checkpoint that may be split differently needs names.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import (  # the kernels under torch.optim; torch gives them no public names
    _foreach_add_,
    _foreach_addcdiv_,
    _foreach_addcmul_,
    _foreach_div_,
    _foreach_lerp_,
    _foreach_mul_,
    _foreach_norm,
    _foreach_sqrt,
)

from pipelinejob.spec import Training

_FIRST_DECAY = 0.9
_SECOND_DECAY = 0.95  # 0.999 remembers more steps than a short run has
_EPSILON = 1e-8
_FINAL_SHARE = 0.1  # of the peak learning rate
# Updated at once: on a GPU few kernels are to be started; on a CPU there is one a parameter anyhow.
_GROUP_BYTES = {"cuda": 1 << 26, "cpu": 1 << 20}


def learning_rate(training: Training, step: float) -> float:
    """Give the learning rate of a step (1 is the first): linear warm-up, then a cosine down to a tenth.

    An update within a step counts as the share of the step that is done with it.
    """
    if step <= training.warmup_steps:
        return training.learning_rate * step / training.warmup_steps
    decay_steps = training.steps - training.warmup_steps
    done = min(1.0, (step - training.warmup_steps) / decay_steps) if decay_steps > 0 else 1.0
    share = _FINAL_SHARE + (1 - _FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2
    return training.learning_rate * share


def clip_factor(norm: float, clip_norm: float) -> float:
    """Give what gradients of a global norm are multiplied by; a bound of 0 clips nothing."""
    return 1.0 if clip_norm == 0 or norm <= clip_norm else clip_norm / norm


class AdamW:
    """Parameters, by global name, and their two moments, all fp32."""

    def __init__(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], *, weight_decay: float) -> None:
        self.parameters: dict[str, torch.Tensor] = {name: each for name, each in parameters if each.requires_grad}
        self.first_moments = {name: torch.zeros_like(each) for name, each in self.parameters.items()}
        self.second_moments = {name: torch.zeros_like(each) for name, each in self.parameters.items()}
        self._weight_decay = weight_decay
        self._groups = tuple(_groups(self.parameters))
        # A norm's gain or a bias has no scale to lose: decay is for matrices.
        self._matrices = [each for each in self.parameters.values() if each.dim() > 1]

    @torch.no_grad()
    def squared_norm(self, names: Collection[str] | None = None) -> torch.Tensor:
        """Give the squared norm of the gradients of these parameters, or of all, float64, where they are.

        Without any gradients it is on the CPU.
        """
        gradients = self._gradients(names)
        if not gradients:
            return torch.zeros((), dtype=torch.float64)
        return torch.stack(list(_foreach_norm(gradients))).double().square().sum()

    @torch.no_grad()
    def step(self, number: int, *, rate: float, gradient_factor: float = 1.0) -> None:
        """Update parameters and moments by gradients times `gradient_factor`; `number` counts from 1.

        Temporaries take as much as a group of parameters, not as all of them.
        """
        gradients = self._gradients()
        if gradients and gradient_factor != 1.0:
            _foreach_mul_(gradients, gradient_factor)
        if self._matrices:
            _foreach_mul_(self._matrices, 1 - rate * self._weight_decay)
        for names in self._groups:
            self._step_group(names, number, rate)

    def _step_group(self, names: Sequence[str], number: int, rate: float) -> None:
        parameters = [self.parameters[name] for name in names]
        gradients = [each.grad for each in parameters if each.grad is not None]  # all have one
        firsts, seconds = ([of[name] for name in names] for of in (self.first_moments, self.second_moments))
        _foreach_lerp_(firsts, gradients, 1 - _FIRST_DECAY)
        _foreach_mul_(seconds, _SECOND_DECAY)
        _foreach_addcmul_(seconds, gradients, gradients, 1 - _SECOND_DECAY)
        # Both moments start at zero; dividing by 1 - decay^n takes that bias out again.
        denominators = _foreach_sqrt(seconds)
        _foreach_div_(denominators, math.sqrt(1 - _SECOND_DECAY**number))
        _foreach_add_(denominators, _EPSILON)
        _foreach_addcdiv_(parameters, firsts, denominators, -rate / (1 - _FIRST_DECAY**number))

    def zero_gradients(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _gradients(self, names: Collection[str] | None = None) -> list[torch.Tensor]:
        # A layer that a step did not use has none; its moments must still decay, on every replica alike.
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        wanted = (each for name, each in self.parameters.items() if names is None or name in names)
        return [each.grad for each in wanted if each.grad is not None]


def _groups(parameters: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """Give the names of parameters that are updated at once."""
    group: list[str] = []
    num_bytes = 0
    for name, parameter in parameters.items():
        if group and num_bytes + parameter.nbytes > _GROUP_BYTES[parameter.device.type]:
            yield group
            group, num_bytes = [], 0
        group.append(name)
        num_bytes += parameter.nbytes
    if group:
        yield group
