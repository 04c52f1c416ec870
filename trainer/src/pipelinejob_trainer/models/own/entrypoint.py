"""A user's own model: `package.module:function` returns the list of layers.

An element is a module, or a function without arguments that makes one. Functions are called for
this stage's layers only, so a model can be larger than any single host's memory. A parameter or
buffer that two modules have in common is shared by them, however the layers are split; layers made
by functions cannot share parameters, because no process sees both of them (`functions.py`).
"""

import importlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import nn

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.user_code import error_text, is_theirs, own_frames
from pipelinejob_trainer.models.identity import Made, immutable, of_layer, ties, trained
from pipelinejob_trainer.models.own.functions import TensorsBefore, made_anew
from pipelinejob_trainer.models.own.hidden import check_hidden

_FIELD = "spec.model.entrypoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Each layer's name and factory.

    For modules it also holds which tensors are tied, and which are trained.
    """

    parts: Sequence[tuple[str, Callable[[], Made]]]
    tied: Mapping[str, str]
    trained: Mapping[str, weakref.ref[torch.Tensor]]


def load(entrypoint: str, arguments: Mapping[str, str], *, expected: int) -> Layers:
    """Call the entry point.

    Raises UserError saying what is wrong with it.
    """
    layers = _call(entrypoint, find(entrypoint), arguments)
    if not isinstance(layers, (list, tuple, nn.ModuleList, nn.Sequential)):
        raise _error(entrypoint, f"returned {_described(layers)}; return a list of torch.nn.Module")
    layers = list(layers)
    if len(layers) != expected:
        raise _error(
            entrypoint,
            f"returned {len(layers)} layers but spec.model.numLayers says {expected}; write {len(layers)} there",
        )
    modules = [(index, layer) for index, layer in enumerate(layers) if isinstance(layer, nn.Module)]
    tied = ties(modules)
    fixed, before = immutable(modules, tied), TensorsBefore()
    check_hidden(modules)
    parts = [
        _part(entrypoint, index, layer, tied=tied, fixed=fixed, before=before) for index, layer in enumerate(layers)
    ]
    return Layers(parts=parts, tied=tied, trained=trained(modules, tied))


def find(entrypoint: str, *, field: str = _FIELD) -> Callable[..., object]:
    """Return the function that a field of the spec names. Raises UserError if there is none."""
    module_name, _, function_name = entrypoint.partition(":")
    function = getattr(_import(entrypoint, module_name, field), function_name, None)
    if function is None:
        raise _error(
            entrypoint, f"module {module_name} has no {function_name!r}; name a function that it defines", field
        )
    if not callable(function):
        raise _error(entrypoint, f"{function_name} is {_described(function)}; name a function", field)
    result: Callable[..., object] = function
    return result


def _import(entrypoint: str, module_name: str, field: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise _error(
            entrypoint, f"there is no module {error.name!r} in this image; install it, or put it on PYTHONPATH", field
        ) from error
    except BaseException as error:  # noqa: BLE001 # a user's module may raise anything as it is imported
        _raised(entrypoint, f"importing {module_name}", error, field=field)


def _call(entrypoint: str, function: Callable[..., object], arguments: Mapping[str, str]) -> Any:
    try:
        return function(**arguments)
    except BaseException as error:  # noqa: BLE001 # as above: the user's code
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        _raised(entrypoint, f"called with ({given}) it", error, way_out="; check spec.model.arguments")


def _part(
    entrypoint: str,
    index: int,
    layer: object,
    *,
    tied: Mapping[str, str],
    fixed: Mapping[str, str],
    before: TensorsBefore,
) -> tuple[str, Callable[[], Made]]:
    if isinstance(layer, nn.Module):
        made = Made(module=layer, tied=of_layer(index, tied), immutable=of_layer(index, fixed))
        return type(layer).__name__, lambda: made
    if callable(layer):
        return f"layer-{index}", partial(made_anew, index, partial(_make, entrypoint, index, layer), before)
    raise _error(
        entrypoint,
        f"layer {index} is {_described(layer)}; each must be a torch.nn.Module, or a function that makes one",
    )


def _make(entrypoint: str, index: int, make: Callable[[], object]) -> nn.Module:
    try:
        module = make()
    except BaseException as error:  # noqa: BLE001 # as above
        _raised(entrypoint, f"making layer {index}", error)
    if not isinstance(module, nn.Module):
        raise _error(entrypoint, f"layer {index} made {_described(module)}; it must make a torch.nn.Module")
    return module


def _described(value: object) -> str:
    return "None" if value is None else f"{value!r:.80} of type {type(value).__name__}"


def _raised(entrypoint: str, what: str, error: BaseException, *, way_out: str = "", field: str = _FIELD) -> NoReturn:
    """Raise UserError with the user's own lines.

    An error that the user cannot fix is raised unchanged.
    """
    if not is_theirs(error):
        raise error
    frames = own_frames(error)
    where = f"; at {', '.join(frames)}" if frames else ""
    raise _error(entrypoint, f"{what} raised {error_text(error)}{where}{way_out}", field) from error


def _error(entrypoint: str, problem: str, field: str = _FIELD) -> UserError:
    return UserError("BadEntrypoint", f"{field} {entrypoint}: {problem}")
