"""Tensors in a layer's plain attributes that use the memory of another layer's weight.

In plain torch, `self.seen = [embedding.weight.detach()]` follows the embedding's updates. On
another rank nothing would update it, and nothing would report that.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import nn

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.identity import Place, memory_of, places

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def check_hidden(layers: Iterable[tuple[int, nn.Module]]) -> None:
    """Refuse a hidden tensor on the memory of a trained parameter of another layer.

    A hidden parameter of another layer is found later, in `training.checks.parameter_check`.
    Raises UserError.
    """
    layers = list(layers)
    held = [place for each in layers for place in places(*each) if _is_trained(place.tensor)]
    parameters = {id(place.tensor) for place in held}
    by_memory: dict[object, list[Place]] = {}
    for place in held:
        by_memory.setdefault(_memory(place.tensor), []).append(place)
    for index, layer in layers:
        for name, tensor in _hidden(layer):
            owners = by_memory.get(memory_of(tensor), [])
            if owners and id(tensor) not in parameters and all(owner.layer != index for owner in owners):
                raise UserError(
                    "SharedMemory",
                    f"spec.model.entrypoint: layer {index}: its attribute {name} holds a tensor on the memory of"
                    f" parameter {owners[0].name}, which is trained: on another rank nothing would update it; let the"
                    " layer have the parameter itself among its own (self.weight = embedding.weight), and take"
                    " detach() in forward, or give it memory of its own with clone()",
                )


def _hidden(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Return tensors in modules' attributes, also in containers, by the attribute's name."""
    for path, module in layer.named_modules():
        for name, value in module.__dict__.items():
            if name not in _OF_EVERY_MODULE:
                yield from ((f"{path}.{name}" if path else name, each) for each in _tensors(value))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, (list, tuple, set)):
        yield from (each for each in value if isinstance(each, torch.Tensor))


def _is_trained(tensor: torch.Tensor | None) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _memory(tensor: torch.Tensor | None) -> object:
    return None if tensor is None else memory_of(tensor)
