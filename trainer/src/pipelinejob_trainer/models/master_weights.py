"""Layers as they are trained: in training mode, with fp32 master weights."""

from torch import nn

_SHORT_BYTES = 2


def to_masters(module: nn.Module) -> nn.Module:
    """Turn a module's floating-point tensors of 16 bits or fewer into fp32, in place.

    Return the module. Small updates would be rounded away. Other tensors keep their type.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.itemsize <= _SHORT_BYTES:
            tensor.data = tensor.data.float()
    return module


def to_training(layer: nn.Module) -> None:
    """Put a layer into training mode; modules that it has set to eval mode itself stay so."""
    if not layer.training:
        layer.train()
