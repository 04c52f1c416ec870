"""What the first layer gets beside token ids, where it asks for it.

A first layer whose `forward` has a parameter called `positions` gets each token's place in its own
document, int64 (batch, sequence), or None where a sequence is one document. Later layers get what
a nesting carries on.
"""

import inspect

import torch
from torch import nn


def takes_positions(layer: nn.Module) -> bool:
    """Return whether a first layer asks for positions."""
    try:
        parameters = inspect.signature(layer.forward).parameters
    except (TypeError, ValueError):  # of what is written in C
        return False
    return "positions" in parameters


def extra_inputs(index: int, layer: nn.Module, positions: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """Return what a layer gets by name beside the stream, where layers are called outside any stage."""
    return {"positions": positions} if index == 0 and takes_positions(layer) else {}
