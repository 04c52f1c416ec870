"""Functions of autograd as people write them, for `odd_layers.py`."""

from typing import Any

import torch


class Fused(torch.autograd.Function):
    """A product whose backward pass adds to the weight's gradient by itself."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        weight = ctx.weight
        found = (gradient.flatten(0, -2).t() @ x.to(gradient.dtype).flatten(0, -2)).to(weight.dtype)
        weight.grad = found if weight.grad is None else weight.grad + found
        return gradient @ weight.detach().to(gradient.dtype), None


class Scaled(torch.autograd.Function):
    """Two outputs, one without a gradient, and things kept on the context."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, gain)
        ctx.calls = 0
        sign = x.sign()
        ctx.mark_non_differentiable(sign)
        return x * gain, sign

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, gain = ctx.saved_tensors
        ctx.calls += 1  # a second time, other values would come
        return gradient * gain * ctx.calls, (gradient * x).sum((0, 1)) * ctx.calls
