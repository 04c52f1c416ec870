"""A user's own model: `package.module:function`, called with the manifest's arguments, gives the list of layers.

An element is a module, or a function without arguments that makes one. Functions are called for this stage's layers
only, so a model that fits in no single host's memory can be given too. A parameter that stands in two modules is shared
by them, however the layers are split; functions can share none, as nobody sees both of what they make.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from pipelinejob_trainer.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Each layer's name and what makes it, and the parameters that are an earlier layer's, by global names."""

    parts: Sequence[tuple[str, Callable[[], nn.Module]]]
    tied: Mapping[str, str]


def load(entrypoint: str, arguments: Mapping[str, str], *, expected: int) -> Layers:
    """Call the entry point.

    Raises UserError(BadEntrypoint) saying what is wrong with it.
    """
    layers = _call(entrypoint, _find(entrypoint), arguments)
    if not isinstance(layers, (list, tuple, nn.ModuleList, nn.Sequential)):
        raise _error(entrypoint, f"returned {_described(layers)}; return a list of torch.nn.Module")
    layers = list(layers)
    if len(layers) != expected:
        raise _error(
            entrypoint,
            f"returned {len(layers)} layers but spec.model.numLayers says {expected}; write {len(layers)} there",
        )
    return Layers(parts=[_part(entrypoint, index, layer) for index, layer in enumerate(layers)], tied=_tied(layers))


def _tied(layers: Sequence[object]) -> dict[str, str]:
    owners: dict[int, tuple[int, str]] = {}
    tied = {}
    for index, layer in enumerate(layers):
        for local, parameter in layer.named_parameters() if isinstance(layer, nn.Module) else ():
            name = f"layers.{index}.{local}"
            owner, owners_name = owners.setdefault(id(parameter), (index, name))
            if owner != index:
                tied[name] = owners_name
    return tied


def _find(entrypoint: str) -> Callable[..., object]:
    module_name, _, function_name = entrypoint.partition(":")
    function = getattr(_import(entrypoint, module_name), function_name, None)
    if function is None:
        raise _error(entrypoint, f"module {module_name} has no {function_name!r}; name a function that it defines")
    if not callable(function):
        raise _error(entrypoint, f"{function_name} is {_described(function)}; name a function")
    result: Callable[..., object] = function
    return result


def _import(entrypoint: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise _error(
            entrypoint, f"there is no module {error.name!r} in this image; install it, or put it on PYTHONPATH"
        ) from error
    except Exception as error:  # a user's module may raise anything as it is imported, and all of it is theirs to mend
        raise _error(entrypoint, f"importing {module_name} raised {_raised(error)}") from error


def _call(entrypoint: str, function: Callable[..., object], arguments: Mapping[str, str]) -> Any:
    try:
        return function(**arguments)
    except Exception as error:  # as above: the user's code
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise _error(
            entrypoint, f"called with ({given}) it raised {_raised(error)}; check spec.model.arguments"
        ) from error


def _part(entrypoint: str, index: int, layer: object) -> tuple[str, Callable[[], nn.Module]]:
    if isinstance(layer, nn.Module):
        return type(layer).__name__, lambda: layer
    if callable(layer):
        return f"layer-{index}", partial(_make, entrypoint, index, layer)
    raise _error(
        entrypoint,
        f"layer {index} is {_described(layer)}; each must be a torch.nn.Module, or a function that makes one",
    )


def _make(entrypoint: str, index: int, make: Callable[[], object]) -> nn.Module:
    try:
        module = make()
    except Exception as error:  # as above: the user's code
        raise _error(entrypoint, f"making layer {index} raised {_raised(error)}") from error
    if not isinstance(module, nn.Module):
        raise _error(entrypoint, f"layer {index} made {_described(module)}; it must make a torch.nn.Module")
    return module


def _described(value: object) -> str:
    return "None" if value is None else f"{value!r:.80} of type {type(value).__name__}"


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _error(entrypoint: str, problem: str) -> UserError:
    return UserError("BadEntrypoint", f"spec.model.entrypoint {entrypoint}: {problem}")
