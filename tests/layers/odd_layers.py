"""Layers with people's habits, each a model of `embedding, four of a kind, head` for `spec.model.entrypoint`."""

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from layers.own_functions import Fused, Scaled

WIDTH = 8


class Base(nn.Module):
    """A residual layer; kinds of it say what is done between."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


class InPlace(Base):
    """Changes what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x *= 0.5
        x += 0.1
        return x + torch.tanh(self.linear(x))


class InPlaceAtTimes(Base):
    """Changes what it is given, if it does not like it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.detach().mean() > 0:
            x.clamp_(max=0.5)
        return x + torch.tanh(self.linear(x))


class ReluInPlace(Base):
    """An activation that writes over its input first."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.activation(x)) + 0.1


class Same(Base):
    """Gives back what it is given, as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class View(Base):
    """Gives views, and the next layer's input is not contiguous."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).transpose(0, 1).contiguous().transpose(0, 1)


class Expanded(Base):
    """Gives a tensor of which all rows lie on the same memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean(0, keepdim=True).expand(x.shape)


class Normed(Base):
    """Batch statistics, which move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2))


class FrozenNorm(Normed):
    """Batch statistics that a user has put to rest."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.eval()


class Spectral(Base):
    """A norm whose power iteration moves, and which the output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(self.linear)


class OldSpectral(Base):
    """The same by hooks, as it was done before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.spectral_norm(self.linear)


class WeightNormed(Base):
    """A parametrised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(self.linear)


class Average(Base):
    """Keeps a moving mean, bound anew each time, counts its calls, and uses both."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.number = 0
        self.history: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.number += 1
        self.history.append(float(x.detach().mean()))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return x + torch.tanh(self.linear(x - self.mean)) / (1 + self.number % 3) + len(self.history) % 2


class LargeAverage(Base):
    """Keeps a large table, of which it writes past autograd's count of changes, and another that never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1 << 19))
        self.register_buffer("mask", torch.ones(1 << 19), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table.data[:WIDTH].add_(x.detach().mean((0, 1)))
        return x + torch.tanh(self.linear(x + self.table[:WIDTH] * self.mask[:WIDTH]))


class OwnDice(Base):
    """Draws from dice of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = torch.Generator().manual_seed(3)
        self.python_dice = random.Random(4)
        self.numpy_dice = np.random.default_rng(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(x.shape, generator=self.dice)
        return x + torch.tanh(self.linear(x * noise)) * self.python_dice.random() * self.numpy_dice.random()


class Dropped(Base):
    """Draws from torch's dice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + functional.dropout(torch.tanh(self.linear(x)), 0.3)


class Checkpointed(Base):
    """Is run again within its backward pass; what comes back first is no parameter's."""

    reentrant = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + checkpoint(self.inner, x, use_reentrant=self.reentrant)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(torch.tanh(self.linear(x)), 0.3)


class Reentrant(Checkpointed):
    """The same, in the older way."""

    reentrant = True


class HookedSaving(Base):
    """Has what is saved in its own hands."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.clone(),), lambda packed: packed[0]):
            return super().forward(x)


class Derived(Base):
    """Derives within its forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x if x.requires_grad else x.detach().requires_grad_()
        energy = torch.tanh(self.linear(inner)).square().sum()
        (force,) = torch.autograd.grad(energy, inner, create_graph=True)
        return x + force


class Functional(Base):
    """Derives by torch.func."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.func.grad(lambda y: torch.tanh(self.linear(y)).sum())(x)


class FusedLinear(Base):
    """A linear layer by such a Function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(Fused.apply(x, self.linear.weight) + self.linear.bias)


class ByFunction(Base):
    """Uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product, sign = Scaled.apply(self.linear(x), self.gain)
        return x + torch.tanh(product) + sign * 0.01


class FunctionAside(Base):
    """A Function of two parameters, one of which joins once more."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, _ = Scaled.apply(self.linear.weight[None], self.gain)
        return x + functional.linear(x, weight[0]) * self.gain


class Hooked(Base):
    """Hooks on a weight, on what comes out, and on what was added up."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.ones(WIDTH, WIDTH)
        mask[::2] = 0
        self.norm = nn.LayerNorm(WIDTH)
        self.linear.weight.register_hook(lambda gradient: gradient * mask)
        self.norm.weight.register_hook(lambda gradient: gradient * 2)
        self.linear.bias.register_post_accumulate_grad_hook(_halve)
        self.norm.weight.register_post_accumulate_grad_hook(_halve)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + torch.tanh(self.linear(self.norm(x))) * self.norm.weight
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * 0.9)
        return y


def _halve(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(0.5)


class ModuleHooks(Base):
    """Hooks on modules: before and after, forth and back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear.register_forward_pre_hook(lambda _, given: (given[0] * 0.5,))
        self.linear.register_forward_hook(lambda _, __, output: output + 0.1)
        self.linear.register_full_backward_hook(lambda _, inward, __: (inward[0] * 0.7,))
        self.register_full_backward_pre_hook(lambda _, outward: (outward[0] * 0.8,))


class HalfFrozen(Base):
    """A frozen part, and a part without gradients, in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = torch.sigmoid(self.frozen(x))
        return x + torch.tanh(self.linear(self.frozen(x))) * scale + x.detach() * 0.1


class Detached(Base):
    """Gives nothing to derive."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


class Seldom(Base):
    """Uses a part of its parameters in some micro-batches only, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH, WIDTH)
        self.never = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + self.other(x) if x.detach().mean() > 0 else y


class Shapes(Base):
    """Parameters of no dimension, of no size, and of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.empty = nn.Parameter(torch.empty(0, WIDTH))
        self.whole = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x)) * self.gain + self.empty.sum() + self.whole.sum() * 0.01


class Complex(Base):
    """A complex weight, as in Fourier operators."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64) / WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return x + torch.tanh(self.linear(torch.fft.ifft(torch.fft.fft(x) @ self.kernel).real))


class Double(Base):
    """Double precision inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = self.linear.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x.double())).to(x.dtype)


def exchanged() -> nn.Module:
    """Return a layer of torch's, on which another forward pass was put, that draws from Python's dice."""
    layer = nn.Linear(WIDTH, WIDTH)
    layer.forward = lambda x: x + torch.tanh(nn.Linear.forward(layer, x)) * random.random()  # type: ignore[method-assign]
    return layer


KINDS: dict[str, Callable[[], nn.Module]] = {kind.__name__: kind for kind in Base.__subclasses__()} | {
    "Base": Base,
    "FrozenNorm": FrozenNorm,
    "Reentrant": Reentrant,
    "exchanged": exchanged,
}


class Shift(nn.Module):
    """Changes the token ids that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens.add_(1).remainder_(256))


class HookedEmbedding(nn.Embedding):
    """Has a hook on what it gives."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output = super().forward(tokens)
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * 0.5)
        return output


FIRST: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Embedding(256, WIDTH),
    "shift": Shift,
    "hooked": lambda: HookedEmbedding(256, WIDTH),
}


def layers(*, kind: str, first: str) -> list[nn.Module]:
    """Make a model of layers of a kind, after a first one of another."""
    return [FIRST[first](), Base(), *(KINDS[kind]() for _ in range(4)), nn.Linear(WIDTH, 256)]
