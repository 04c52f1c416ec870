"""Any habit inside of a nesting: what it takes and gives stands in a dictionary beside tensors that are carried on.

{"x": ..., "carried": [...], "side": Side(mask, scale, name, nothing), "again": the same tensor as
"x"}
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class Side(NamedTuple):
    """What goes beside the stream, and has no gradient."""

    mask: torch.Tensor
    scale: float
    name: str
    nothing: None


class FirstNested(nn.Module):
    """Makes the nesting."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens):
        mask = tokens % 3 != 0
        x = self.inner(tokens)
        return {"x": x, "carried": [x * 0.5], "side": Side(mask, 0.1, "side", None), "again": x}


class Nested(nn.Module):
    """Takes a part of what is carried into the stream, and has its own input carried on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given):
        x, side = given["x"], given["side"]
        oldest, *others = given["carried"]
        mixed = x + side.scale * side.mask.unsqueeze(-1) * oldest
        y = self.inner(mixed)
        return {"x": y, "carried": [*others, x], "side": side, "again": y}


class LastNested(nn.Module):
    """Gives logits of all of it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given):
        return self.inner(given["x"] + given["side"].scale * (given["again"] + sum(given["carried"])))


def nested(make: Callable[[], nn.Module], *, is_first: bool, is_last: bool) -> nn.Module:
    """Make a habit's layer, inside of a nesting."""
    kind = FirstNested if is_first else LastNested if is_last else Nested
    return kind(make())
