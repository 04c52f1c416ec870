"""State that layers keep between passes, so that a pass can be repeated without changing it.

Running means, power iterations, counters, a layer's own random generators: a repeated pass has to
start from what the first one found, and leave the present state alone. So the state is copied
before the first pass, and the repeated pass works on the copies. Tensors are exchanged, not
overwritten, because graphs may have saved them.

Included are buffers, Python's and numpy's global generators, and those attributes of modules that
are tensors, plain values, lists, dicts, sets or generators; not what is nested deeper, or outside
the layers.
"""

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

# Larger tensors are copied only if they are seen to change: masks and tables of positions can be as large as layers.
_LARGE_BYTES = 1 << 20
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)

Values = dict[str, Any]
GeneratorStates = tuple[Any, Any]  # the states of Python's and numpy's


class ModuleState(NamedTuple):
    """One module's buffers and other attributes."""

    buffers: Values
    attributes: Values


@dataclass(frozen=True, slots=True)
class PassState:
    """What a pass finds: the state of each module, and of the process's random generators."""

    held: tuple[ModuleState, ...]
    generators: GeneratorStates | None


class LayerState:
    """The state that modules and their submodules keep between passes."""

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        modules = dict.fromkeys(module for root in roots for module in root.modules())
        self._modules = tuple(filter(_can_keep, modules))
        # Large tensors that did not change, with their versions; None until it is known.
        self._unchanged: dict[int, tuple[torch.Tensor, int]] | None = None
        self._uses_global_generators = True  # whether passes draw from the process's own; True until it is known

    def copied(self) -> PassState:
        """Return a copy of the present state."""
        copies: dict[int, torch.Tensor] = {}
        held = ((self._copies(each.buffers, copies), self._copies(each.attributes, copies)) for each in self._held())
        return PassState(tuple(ModuleState(*each) for each in held), self._generator_states())

    @contextmanager
    def on(self, found: PassState) -> Iterator[None]:
        """Run layers on an earlier state, which is used up.

        Afterwards they have the present state again.
        """
        now = PassState(self._held(), self._generator_states())
        if self._unchanged is None:
            self._unchanged = _unchanged(now, found)
            self._uses_global_generators = _text(now.generators) != _text(found.generators)
        self._put(found)
        try:
            yield
        finally:
            self._put(now)

    def _generator_states(self) -> GeneratorStates | None:
        return (random.getstate(), np.random.get_state()) if self._uses_global_generators else None  # noqa: NPY002 # others draw from it

    def _held(self) -> tuple[ModuleState, ...]:
        return tuple(ModuleState(dict(_buffers(module)), _attributes(module)) for module in self._modules)

    def _put(self, found: PassState) -> None:
        for module, (buffers, attributes) in zip(self._modules, found.held, strict=True):
            _exchange(_buffers(module), _buffers(module).keys(), buffers)
            _exchange(module.__dict__, module.__dict__.keys() - _OF_EVERY_MODULE, attributes)
        if found.generators is not None:
            of_python, of_numpy = found.generators
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002 # as above

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
        for mine, theirs in zip(now.held, found.held, strict=True)
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


def _text(generators: GeneratorStates | None) -> str:
    """Return random states as text, to compare them; numpy's holds an array."""
    return (
        repr(generators) if generators is None else repr((generators[0], generators[1][1].tolist(), generators[1][2:]))
    )
