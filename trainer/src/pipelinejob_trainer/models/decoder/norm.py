"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): x / sqrt(mean(x^2) + epsilon), times a weight.

In fp32, whatever comes in. torch's own is one kernel on a GPU, but a dozen elsewhere, which keep
more than what came in.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.tensor_parallel import on_stream, with_all_gradients


class RMSNorm(nn.RMSNorm):
    """A norm over the last dimension; under autocast the result has its precision, for all that is multiplied with."""

    tensor_group: TensorGroup = ALONE

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.eps is not None
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype
        weight = self._weight()
        if x.is_cuda:
            return functional.rms_norm(x.float(), self.normalized_shape, weight, self.eps).to(dtype)
        normed: torch.Tensor = _RMSNorm.apply(x, weight, self.eps, dtype)
        return normed

    def _weight(self) -> torch.Tensor:
        return on_stream(self.weight, self.tensor_group)


class HeadNorm(RMSNorm):
    """A norm of each head by itself; each rank of a tensor group adds its heads' part to the weight's gradient."""

    def _weight(self) -> torch.Tensor:
        return with_all_gradients(self.weight, self.tensor_group)


class _RMSNorm(torch.autograd.Function):
    """With y = x * root, and g the gradient of weight * y: the gradient of the weight is the sum of g * y over tokens.

    That of x is root * (h - y * mean(h * y)), where h = g * weight.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        root = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(epsilon))
        ctx.save_for_backward(x, weight, root)
        return (wide * root).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        x, weight, root = ctx.saved_tensors
        gradient = gradients[0].float()
        y = x.float() * root
        of_weight = (gradient * y).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        h = gradient * weight
        mean = torch.linalg.vecdot(h, y, dim=-1).unsqueeze(-1).div_(x.shape[-1])
        return h.addcmul_(y, mean, value=-1).mul_(root).to(x.dtype), of_weight, None, None
