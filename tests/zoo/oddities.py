"""Layers of odd types, with hooks, and with gradients that are not dense."""

import torch
from torch import nn

from zoo.habit import VOCABULARY, WIDTH
from zoo.ordinary import Embedding, Half


class DoubleInside(nn.Module):
    """Reckons in float64, with a weight of that type."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def forward(self, x):
        return x + torch.tanh(self.linear(x.to(self.linear.weight.dtype))).to(x.dtype)


class DoubleOnTheWay(Half):
    """Reckons in float64, with weights of the usual type."""

    def forward(self, x):
        return super().forward((x.double().cumsum(1) / WIDTH).to(x.dtype))


class HalfMade(nn.Module):
    """Is made in bfloat16, as large models are, and casts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)

    def forward(self, x):
        return x + torch.tanh(self.linear(x.to(self.linear.weight.dtype))).to(x.dtype)


class Spectral(nn.Module):
    """Multiplies by a complex weight between two Fourier transformations."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64) / WIDTH)

    def forward(self, x):
        waves = torch.fft.fft(x.float(), dim=-1) @ self.kernel
        return x + torch.fft.ifft(waves, dim=-1).real


class Table(Half):
    """Looks things up in an integer table, which stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(WIDTH))

    def forward(self, x):
        return super().forward(x[..., self.order])


class Scalar(nn.Module):
    """Has weights of no and of odd dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.cube = nn.ParameterList([torch.randn(2, 2, WIDTH) / WIDTH, torch.randn(1) / WIDTH])
        self.none = nn.Parameter(torch.empty(0, WIDTH))

    def forward(self, x):
        return x * self.gain + self.cube[0].sum((0, 1)) * self.cube[1]


class HookedWeight(Half):
    """Keeps half of its weight as it is, by a hook on the gradient."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.ones(WIDTH, WIDTH)
        mask[::2] = 0
        self.linear.weight.register_hook(lambda gradient: gradient * mask)


class HookedSum(Half):
    """Bounds what has been gathered of its weight's gradient, each time that something is added."""

    def __init__(self) -> None:
        super().__init__()
        self.linear.weight.register_post_accumulate_grad_hook(_bound)


def _bound(weight: nn.Parameter) -> None:
    weight.grad.clamp_(-0.01, 0.01)


def _each(gradients, change):
    return tuple(None if each is None else change(each) for each in gradients)


class HookedModule(Half):
    """Has hooks before and after its forward pass, and after its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear.register_forward_pre_hook(lambda _, given: (given[0] * 0.5,))
        self.linear.register_forward_hook(lambda _, __, result: result * 1.5)
        self.linear.register_full_backward_hook(lambda _, given, __: _each(given, lambda one: one.clamp(-0.1, 0.1)))


class HookedLayer(Half):
    """Scales the gradient that it gives back, by a hook on the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_full_backward_hook(lambda _, given, __: _each(given, lambda one: one * 0.5))


class HookedStream(Half):
    """Bounds the gradient of a tensor on its way."""

    def forward(self, x):
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
        return y * 2


class SparseEmbedding(Embedding):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH, sparse=True)


class Lazy(nn.Module):
    """Finds its sizes out when it is first used."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(WIDTH)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


class Wrong(nn.Module):
    """Cannot take what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH + 1, WIDTH)

    def forward(self, x):
        return self.linear(x)
