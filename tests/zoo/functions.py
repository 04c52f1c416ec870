"""Layers by autograd Functions of people's own."""

import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

from zoo.habit import WIDTH
from zoo.ordinary import Half, Mixture


class _Saving(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, -2).t() @ x.flatten(0, -2)


class _ByAttributes(torch.autograd.Function):
    """Keeps what it needs as attributes."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.x, ctx.weight = x, weight
        return x @ weight.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient @ ctx.weight, gradient.flatten(0, -2).t() @ ctx.x.flatten(0, -2)


class _Accumulating(torch.autograd.Function):
    """Adds to the weight's gradient by itself."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        ctx.weight = weight
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        (x,), weight = ctx.saved_tensors, ctx.weight
        own = gradient.flatten(0, -2).t() @ x.flatten(0, -2)
        weight.grad = own if weight.grad is None else weight.grad + own
        return gradient @ weight.detach(), None


class _NewStyle(torch.autograd.Function):
    """With a setup_context, and two outputs of which one has no gradient."""

    @staticmethod
    def forward(x, weight):
        result = x @ weight.t()
        return result, result.argmax(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, gradient, _):
        x, weight = ctx.saved_tensors
        if gradient is None:
            return None, None
        return gradient @ weight, gradient.flatten(0, -2).t() @ x.flatten(0, -2)


class _Dirty(torch.autograd.Function):
    """Writes over its input."""

    @staticmethod
    def forward(ctx, x):
        x.tanh_()
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class _Reversing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.1 * gradient


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _Auxiliary(torch.autograd.Function):
    """Lets a tensor through, and has a loss beside it differentiated with the weight that it is given."""

    @staticmethod
    def forward(ctx, x, loss, weight):
        ctx.weight, ctx.shape = weight, loss.shape
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.full(ctx.shape, ctx.weight), None


def _linear_of(function):
    class Layer(Half):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                result = function.apply(x.float(), self.linear.weight)
            return x + torch.tanh(result[0] if isinstance(result, tuple) else result)

    return Layer


class Saving(_linear_of(_Saving)):
    pass


class ByAttributes(_linear_of(_ByAttributes)):
    pass


class NewStyle(_linear_of(_NewStyle)):
    pass


class Accumulating(nn.Module):
    """Has no bias that would stand beside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return x + torch.tanh(_Accumulating.apply(x.float(), self.linear.weight))


class Dirty(Half):
    def forward(self, x):
        return super().forward(_Dirty.apply(x * 1.5))


class Reversing(Half):
    def forward(self, x):
        return x + _Reversing.apply(super().forward(x))


class Rounding(Half):
    def forward(self, x):
        return super().forward(_Rounding.apply(x))


class Balanced(Mixture):
    """Adds a loss of its own for balance between the two, by way of its output's graph."""

    def forward(self, x):
        shares = self.route(x).softmax(-1).float().mean((0, 1))
        return _Auxiliary.apply(super().forward(x), shares.square().sum(), 0.01)
