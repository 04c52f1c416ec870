"""State that layers keep between passes, so that a pass can be repeated without changing it.

Running means, power iterations, counters, a layer's own random generators: a repeated pass has to
start from what the first one found, and leave the present state alone. So the state is copied
before the first pass, and the repeated pass works on the copies. Tensors are exchanged, not
overwritten, because graphs may have saved them.

Included are buffers, and those attributes of modules that are tensors, plain values, lists, dicts,
sets or generators; not what is nested deeper, or outside the layers. The process's own generators
are set before each layer (`randomness.py`).
"""

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

# Larger tensors are copied only if they are seen to change: masks and tables of positions can be
# as large as layers.
_LARGE_BYTES = 1 << 20
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)

Values = dict[str, Any]


class ModuleState(NamedTuple):
    """One module's buffers and other attributes."""

    buffers: Values
    attributes: Values


PassState = tuple[ModuleState, ...]  # what a pass finds, of each module


class LayerState:
    """The state that modules and their submodules keep between passes."""

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        modules = dict.fromkeys(module for root in roots for module in root.modules())
        self._modules = tuple(filter(_can_keep, modules))
        # Large tensors that did not change, with their versions; None until it is known.
        self._unchanged: dict[int, tuple[torch.Tensor, int]] | None = None

    def copied(self) -> PassState:
        """Return a copy of the present state."""
        copies: dict[int, torch.Tensor] = {}
        held = ((self._copies(each.buffers, copies), self._copies(each.attributes, copies)) for each in self._held())
        return tuple(ModuleState(*each) for each in held)

    @contextmanager
    def on(self, found: PassState) -> Iterator[None]:
        """Run layers on an earlier state, which is used up.

        Afterwards they have the present state again.
        """
        now = self._held()
        if self._unchanged is None:
            self._unchanged = _unchanged(now, found)
        self._put(found)
        try:
            yield
        finally:
            self._put(now)

    def _held(self) -> PassState:
        return tuple(ModuleState(dict(_buffers(module)), _attributes(module)) for module in self._modules)

    def _put(self, found: PassState) -> None:
        for module, (buffers, attributes) in zip(self._modules, found, strict=True):
            _exchange(_buffers(module), _buffers(module).keys(), buffers)
            _exchange(module.__dict__, module.__dict__.keys() - _OF_EVERY_MODULE, attributes)

    def _copies(self, values: Values, copies: dict[int, torch.Tensor]) -> Values:
        return {name: self._copy(value, copies) for name, value in values.items()}

    def _copy(self, value: object, copies: dict[int, torch.Tensor]) -> object:
        """Copy a value if a pass can change it; what is one object in two places stays one."""
        if isinstance(value, torch.Tensor):
            if value.requires_grad or self._is_unchanged(value):
                return value
            if id(value) not in copies:
                copies[id(value)] = value.clone()
            return copies[id(value)]
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, _CONTAINERS):
            return copy.copy(value)
        return copy.deepcopy(value) if isinstance(value, _GENERATORS) else value

    def _is_unchanged(self, tensor: torch.Tensor) -> bool:
        if self._unchanged is None or tensor.nbytes <= _LARGE_BYTES:
            return False
        known, version = self._unchanged.get(id(tensor), (None, 0))
        return known is tensor and tensor._version == version  # noqa: SLF001 # torch's documents name it


@contextmanager
def preserving_layer_state(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the state of these modules afterwards."""
    state = LayerState(roots)
    with state.on(state.copied()):
        yield


def _can_keep(module: nn.Module) -> bool:
    """Return whether a module may keep state; torch's own ones do with buffers or hooks only."""
    is_own = not type(module).__module__.startswith("torch.nn.modules.")
    return is_own or bool(module._buffers or module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 # as below


def _unchanged(now: PassState, found: PassState) -> dict[int, tuple[torch.Tensor, int]]:
    """Return large tensors that have not changed, compared by content."""
    return {
        id(tensor): (tensor, tensor._version)  # noqa: SLF001 # as above
        for mine, theirs in zip(now, found, strict=True)
        for values, before in zip(mine, theirs, strict=True)
        for name, tensor in values.items()
        if isinstance(tensor, torch.Tensor) and tensor.nbytes > _LARGE_BYTES and _is_same(tensor, before.get(name))
    }


def _is_same(tensor: torch.Tensor, other: object) -> bool:
    return isinstance(other, torch.Tensor) and torch.equal(tensor, other)


def _buffers(module: nn.Module) -> Values:
    return module._buffers  # noqa: SLF001 # there is no public way to exchange a buffer as it is


def _attributes(module: nn.Module) -> Values:
    return {name: value for name, value in module.__dict__.items() if name not in _OF_EVERY_MODULE}


def _exchange(target: Values, names: Iterable[str], wanted: Values) -> None:
    for name in tuple(names):
        if name not in wanted:
            del target[name]
    for name, value in wanted.items():
        if name not in target or target[name] is not value:
            target[name] = value
