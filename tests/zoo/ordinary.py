"""Layers that do nothing that a textbook does not do: what all others are tried beside."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from zoo.habit import VOCABULARY, WIDTH


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


class Dropout(Half):
    """Drops by a module and by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return x + functional.dropout(torch.tanh(self.linear(self.drop(x))), 0.2, self.training)


class Noisy(Half):
    """Draws by three of torch's functions."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        kept = torch.bernoulli(torch.full_like(x, 0.9))
        return super().forward(x + 0.1 * torch.randn_like(x)) * kept + 0.01 * torch.rand(x.shape)


class LayerDrop(Half):
    """Is left out at times, as Python's dice say; its weights were numpy's."""

    def __init__(self) -> None:
        super().__init__()
        drawn = np.random.randn(WIDTH, WIDTH)  # noqa: NPY002 # as scipy and older code do
        self.linear.weight.data.copy_(torch.from_numpy(drawn * 0.3))

    def forward(self, x):
        if self.training and random.random() < 0.4:
            return x
        return super().forward(x)


class NumpyNoise(Half):
    def forward(self, x):
        noise = np.random.randn(*x.shape) if self.training else 0.0  # noqa: NPY002 # as above
        return super().forward((x + 0.1 * torch.as_tensor(noise)).to(x.dtype))


class Attention(nn.Module):
    """Looks back only, by a mask that is no part of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.register_buffer("mask", torch.ones(64, 64, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x):
        length, seen = x.shape[1], self.norm(x)
        mixed, _ = self.attend(seen, seen, seen, attn_mask=self.mask[:length, :length], need_weights=False)
        return x + mixed


class Recurrent(nn.Module):
    """An LSTM, which holds its parameters in a list of its own too."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return x + self.lstm(x)[0]


class Tuples(nn.Module):
    """Hands tuples and dictionaries about inside."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.ModuleDict({"left": nn.Linear(WIDTH, WIDTH), "right": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x):
        first, rest = self._split(x)
        return first + rest["right"] * rest["left"].sigmoid()

    def _split(self, x):
        return x, {name: module(x) for name, module in self.both.items()}


class Mixture(nn.Module):
    """Sends each token to one of two, by the largest score; one may go without a token."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(WIDTH, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x):
        score, choice = self.route(x).softmax(-1).max(-1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            chosen = choice == number
            if chosen.any():
                result[chosen] = expert(x[chosen]).to(result.dtype)
        return x + result * score.unsqueeze(-1)


class Moody(nn.Module):
    """Takes one way or the other by what came in: a step may leave one of two weights without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.warm, self.cold = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        way = self.warm if x.sum() > 0 else self.cold
        return x + torch.tanh(way(x))


class Unused(Half):
    """Has a weight that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(WIDTH, WIDTH)


class Frozen(Half):
    """Trains one weight and keeps another."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(WIDTH, WIDTH)
        self.fixed.requires_grad_(False)

    def forward(self, x):
        return super().forward(self.fixed(x))


class Identity(nn.Identity):
    pass


class Cut(nn.Module):
    """Lets no gradient through, nor has it a weight."""

    def forward(self, x):
        return x.detach() + 1


class Shifted(nn.Module):
    """No weights; the first token sees nothing, each other the one before it."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) + x


class Strided(Half):
    """Returns a tensor that does not lie in order."""

    def forward(self, x):
        return super().forward(x).transpose(1, 2).contiguous().transpose(1, 2)


class Expanded(Half):
    """Returns a tensor whose entries lie on each other."""

    def forward(self, x):
        return super().forward(x).mean(1, keepdim=True).expand(-1, x.shape[1], -1)


class View(nn.Module):
    """Returns a view of what it was given."""

    def forward(self, x):
        return x.view_as(x)


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, tokens):
        return self.token(tokens)


class PaddedEmbedding(Embedding):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0, scale_grad_by_freq=True)


class FrozenEmbedding(Embedding):
    def __init__(self) -> None:
        super().__init__()
        self.token.requires_grad_(False)


class OneHot(nn.Module):
    """Makes numbers of tokens without a weight."""

    def forward(self, tokens):
        return torch.stack([(tokens >> bit & 1).float() for bit in range(WIDTH)], -1)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, x):
        return self.logits(self.norm(x))
