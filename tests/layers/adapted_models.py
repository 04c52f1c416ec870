"""Layers of one's own, as adapters meet them."""

import torch
from torch import nn
from torch.nn.utils import parametrizations

WIDTH = 256


class Mixing(nn.Module):
    """A layer with a linear layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.inner(x))


class Attending(nn.Module):
    """A layer with torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x, x, x)[0]


def plain() -> list[nn.Module]:
    return [nn.Embedding(WIDTH, WIDTH), Mixing(), Mixing(), nn.Linear(WIDTH, WIDTH)]


def with_torchs_attention() -> list[nn.Module]:
    return [nn.Embedding(WIDTH, WIDTH), Attending(), Mixing(), nn.Linear(WIDTH, WIDTH)]


def tied_matrices() -> list[nn.Module]:
    layers = plain()
    layers[2].inner.weight = layers[1].inner.weight
    return layers


def parametrized() -> list[nn.Module]:
    layers = plain()
    parametrizations.weight_norm(layers[1].inner)
    return layers


_KEPT: list[nn.Module] = []


def kept() -> list[nn.Module]:
    """Return the same modules at every call."""
    _KEPT[:] = _KEPT or plain()
    return _KEPT
