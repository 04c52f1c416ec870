"""Models whose forward passes change what no optimiser steps, as people write them; for `spec.model.entrypoint`."""

from collections.abc import Callable

import torch
from torch import nn

WIDTH = 8


class Carrying(nn.Module):
    """Adds what it carries on to what it gives, so that losses tell of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.carry_on(x.mean((0, 1)))
        return x + torch.tanh(self.linear(x - self.carried()))

    def carry_on(self, mean: torch.Tensor) -> None:
        raise NotImplementedError

    def carried(self) -> torch.Tensor:
        raise NotImplementedError


class InPlace(Carrying):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def carry_on(self, mean: torch.Tensor) -> None:
        self.mean.mul_(0.9).add_(mean, alpha=0.1)
        self.count += 1

    def carried(self) -> torch.Tensor:
        return self.mean * self.count


class Assigned(InPlace):
    def carry_on(self, mean: torch.Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * mean
        self.count = self.count + 1


class ThroughData(InPlace):
    """Writes where torch does not count changes."""

    def carry_on(self, mean: torch.Tensor) -> None:
        self.mean.data.mul_(0.9).add_(mean, alpha=0.1)
        self.count.data = self.count + 1


class NowAndThen(ThroughData):
    """Writes so in every third step only, of four passes each."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def carry_on(self, mean: torch.Tensor) -> None:
        self.passes += 1
        if (self.passes - 1) // 4 % 3 == 1:
            super().carry_on(mean)


class NotPersistent(Carrying):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)

    def carry_on(self, mean: torch.Tensor) -> None:
        self.mean.lerp_(mean, 0.1)

    def carried(self) -> torch.Tensor:
        return self.mean


class MadeLater(Carrying):
    """Makes one buffer in an empty slot, and registers another, as it first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def carry_on(self, mean: torch.Tensor) -> None:
        self.mean = mean.clone() if self.mean is None else 0.9 * self.mean + 0.1 * mean
        if not hasattr(self, "count"):
            self.register_buffer("count", torch.zeros(1, dtype=torch.bfloat16), persistent=False)
        self.count += 1

    def carried(self) -> torch.Tensor:
        return self.mean * self.count


class FirstMean(Carrying):
    """Registers what its first pass saw, and keeps it."""

    def carry_on(self, mean: torch.Tensor) -> None:
        if not hasattr(self, "first"):
            self.register_buffer("first", mean, persistent=False)

    def carried(self) -> torch.Tensor:
        return self.first if hasattr(self, "first") else torch.zeros(WIDTH)


class Growing(Carrying):
    """Keeps all means that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(0, WIDTH), persistent=False)

    def carry_on(self, mean: torch.Tensor) -> None:
        self.means = torch.cat([self.means, mean[None]])

    def carried(self) -> torch.Tensor:
        return self.means.mean(0) if len(self.means) else torch.zeros(WIDTH)


class Teacher(Carrying):
    """Follows its own weight with one that nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)

    def carry_on(self, mean: torch.Tensor) -> None:
        self.slow.data.lerp_(mean, 0.2)

    def carried(self) -> torch.Tensor:
        return self.slow


class Counting(Carrying):
    """Counts its passes in a parameter that nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.zeros(1), requires_grad=False)

    def carry_on(self, mean: torch.Tensor) -> None:
        self.count += 1

    def carried(self) -> torch.Tensor:
        return self.count


class Normed(nn.Module):
    """Batch norm behind a spectral norm: running statistics and a power iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2))


KINDS = {
    kind.__name__: kind
    for kind in (
        InPlace,
        Assigned,
        ThroughData,
        NowAndThen,
        NotPersistent,
        MadeLater,
        FirstMean,
        Growing,
        Teacher,
        Counting,
        Normed,
    )
}


def layers(*, kind: str) -> list[nn.Module]:
    return [nn.Embedding(256, WIDTH), KINDS[kind](), KINDS[kind](), nn.Linear(WIDTH, 256)]


def twice_the_same(*, kind: str) -> list[nn.Module]:
    layer = KINDS[kind]()
    return [nn.Embedding(256, WIDTH), layer, layer, nn.Linear(WIDTH, 256)]


class WithMean(InPlace):
    """Changes a buffer that it is given."""

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        self.mean = mean


def by_functions_with_one_mean() -> list[Callable[[], nn.Module]]:
    mean = torch.zeros(WIDTH)
    return [
        lambda: nn.Embedding(256, WIDTH),
        lambda: WithMean(mean),
        lambda: WithMean(mean),
        lambda: nn.Linear(WIDTH, 256),
    ]


class TwoSlots(Assigned):
    """Has one buffer in two slots, and gives one of them another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last_mean", self.mean)


class Reshaped(InPlace):
    def carry_on(self, mean: torch.Tensor) -> None:
        self.mean = mean[None]


class Replaced(InPlace):
    """Gives itself another parameter than the optimiser has."""

    def carry_on(self, mean: torch.Tensor) -> None:
        self.linear.bias = nn.Parameter(mean)


def one_wrong(*, kind: str) -> list[nn.Module]:
    wrong = {"TwoSlots": TwoSlots, "Reshaped": Reshaped, "Replaced": Replaced}[kind]
    return [nn.Embedding(256, WIDTH), wrong(), nn.Linear(WIDTH, 256)]
