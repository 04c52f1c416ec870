"""Layers with state beside parameters: what a forward pass changes, and what follows from it."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from zoo.habit import WIDTH
from zoo.ordinary import Half


class BatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)  # a bias would have a gradient of rounding alone
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        return x + torch.tanh(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2))


class MovingMean(Half):
    """Keeps a moving mean and takes it off, from the same pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.float().mean((0, 1)), alpha=0.1)
        return super().forward(x - self.mean)


class Counter(Half):
    """Counts its passes in a number, and does other things by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.count += 1
        return super().forward(x) / (1 + 0.01 * self.count)


class NewBuffer(Half):
    """Puts a new tensor in its buffer's place at each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.scale = self.scale * 0.99
        return super().forward(x) * self.scale


class ShadowWeights(Half):
    """Keeps a moving average of its own weight, as teachers do, and adds what that says."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shadow", self.linear.weight.detach().clone())

    def forward(self, x):
        if self.training:
            self.shadow.lerp_(self.linear.weight.detach(), 0.1)
        return super().forward(x) + 0.1 * x @ self.shadow


class Codebook(nn.Module):
    """Rounds to the nearest of a few vectors, which follow what they stand for; straight through for gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("codes", torch.randn(4, WIDTH))
        self.register_buffer("uses", torch.zeros(4, dtype=torch.int64))

    def forward(self, x):
        given = self.linear(x).float()
        nearest = (given.unsqueeze(-2) - self.codes).square().sum(-1).argmin(-1)
        chosen = self.codes[nearest]
        if self.training:
            with torch.no_grad():
                self.uses += torch.bincount(nearest.flatten(), minlength=4)
                self.codes[nearest.flatten()] += 0.1 * (given - chosen).flatten(0, -2)[0]
        return x + given + (chosen - given).detach()


class SpectralNorm(Half):
    def __init__(self) -> None:
        super().__init__()
        self.linear = parametrizations.spectral_norm(self.linear)


class OldSpectralNorm(Half):
    """By the hook that torch had before parametrizations."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.spectral_norm(self.linear)


class WeightNorm(Half):
    def __init__(self) -> None:
        super().__init__()
        self.linear = parametrizations.weight_norm(self.linear)


class _Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).transpose(0, 1)


class Parametrized(Half):
    """Trains a symmetric weight."""

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.linear, "weight", _Symmetric())


class ExtraState(Half):
    """Counts in a plain number, which torch saves by a function of the layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x):
        if self.training:
            self.passes += 1
        return super().forward(x) / (1 + 0.01 * self.passes)

    def get_extra_state(self):
        return torch.tensor(self.passes)

    def set_extra_state(self, state) -> None:
        self.passes = int(state)
