"""Layers of your own that hand dictionaries to each other: an encoder whose levels skip to a decoder.

Between layers may go any nesting of tensors. Each level of the encoder looks half as far, by pairs
of positions, and adds what it saw to `skips`; each level of the decoder takes the last one out
again. A level and its mirror image may be stages apart: every stage between carries the skip on,
as one more tensor in the message to the next, and its gradient back. So nothing is registered
anywhere; the price is the skip's bytes at each border that it crosses.

    tokens -> embedding -> down -> down -> up -> up -> head
                             |       '-----'     |
                             '-------------------'
"""

from collections.abc import Callable
from functools import partial
from typing import TypedDict

import torch
from torch import nn
from torch.nn import functional

IGNORED = -100  # a target that does not count; its loss is 0


class Stream(TypedDict):
    """What goes between layers; `skips` are the encoder's levels that the decoder has not met yet."""

    x: torch.Tensor  # (batch, length, width)
    skips: list[torch.Tensor]


class Embedding(nn.Embedding):
    def forward(self, tokens: torch.Tensor) -> Stream:
        return {"x": super().forward(tokens), "skips": []}


class Down(nn.Module):
    """Joins each position with the one before it, and then every second one is dropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.join = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU())

    def forward(self, given: Stream) -> Stream:
        x = given["x"]
        before = functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return {"x": self.join(torch.cat((before, x), -1))[:, ::2], "skips": [*given["skips"], x]}


class Up(nn.Module):
    """Puts each position back where it was; only what came before may be seen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU())

    def forward(self, given: Stream) -> Stream:
        *skips, skip = given["skips"]
        x = given["x"].repeat_interleave(2, 1)[:, : skip.shape[1]]
        return {"x": skip + self.mix(torch.cat((x, skip), -1)), "skips": skips}


class Head(nn.Linear):
    def forward(self, given: Stream) -> torch.Tensor:
        return super().forward(given["x"])


def layers(*, width: str, depth: str) -> list[Callable[[], nn.Module]]:
    """Return the layers: an embedding, `depth` levels down and as many up, a head over the 256 bytes."""
    size, levels = int(width), int(depth)
    down, up = [partial(Down, size)] * levels, [partial(Up, size)] * levels
    return [partial(Embedding, 256, size), *down, *up, partial(Head, size, 256)]


def focal_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a loss that looks at what is hard, as (sum, count): Lin et al. 2017, arXiv 1708.02002."""
    nats = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return ((1 - torch.exp(-nats)) ** 2 * nats).sum(), (targets != IGNORED).sum()
