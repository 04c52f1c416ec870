"""A model of your own: a function that returns its layers, first to last.

`model.entrypoint` names the function `layers`; its arguments are strings. The first layer receives
token ids, the last returns logits, one for each token of the vocabulary. Each function of the list
makes one layer, and is called only on that layer's stage, so no stage holds the whole model.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn


class Mixer(nn.Module):
    """Mixes earlier positions into each one (GRU), then applies a feed-forward layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.out = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) -> the same shape."""
        x = x + self.memory(self.norm(x))[0]
        return x + self.out(x)


def layers(*, width: str, depth: str) -> list[Callable[[], nn.Module]]:
    """Return the layers: an embedding, `depth` mixers, a head over the 256 bytes."""
    size = int(width)
    return [
        partial(nn.Embedding, 256, size),
        *(partial(Mixer, size) for _ in range(int(depth))),
        partial(nn.Linear, size, 256),
    ]
