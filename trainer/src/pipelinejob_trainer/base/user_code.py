"""Errors in a user's code, told apart from ours: one sentence that the layer's author can act on.

Nothing here runs in a pass that succeeds. Errors that the user cannot fix are raised unchanged:
exhausted memory, a failed device or peer, and what our own code raised while a layer was calling
it.
"""

import os
import signal
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import nn

from pipelinejob.base.errors import PipelineJobError
from pipelinejob_trainer.base.errors import ChangedInPlaceError, LayerError
from pipelinejob_trainer.base.nesting import NestingError, described, flatten

_PACKAGE = str(Path(__file__).parents[1])
_MODELS = os.path.join(_PACKAGE, "models")  # noqa: PTH118 # compared as text
_DOOR = os.path.join(_PACKAGE, "stage", "backward", "autograd_engine.py")  # noqa: PTH118 # where autograd is called: what it raises is not ours
_NOT_THE_USERS = (_PACKAGE + os.sep, str(Path(torch.__file__).parent) + os.sep, "<")
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = ("site-packages", "dist-packages")
# What libraries under torch say of a GPU that has no room or does not work, besides torch's own
# error types.
_DEVICE_WORDS = ("STATUS_ALLOC_FAILED", "STATUS_NOT_INITIALIZED", "STATUS_EXECUTION_FAILED")
_CHANGED_IN_PLACE = "modified by an inplace operation"  # in autograd's words
_MAX_FRAMES = 3
_MAX_WORDS = 400  # characters of what an error says: torch's may be pages

Layers = Sequence[tuple[int, nn.Module]]


class BuiltInLayer(nn.Module):
    """A layer of a built-in family: what it raises is no user's mistake."""


def through_layer(
    index: int,
    layer: nn.Module,
    given: Any,
    extra: Mapping[str, Any] | None = None,
    call: Callable[[Any], Any] | None = None,
) -> Any:
    """Call a layer, or what runs it in its stead, outside any stage, with extra inputs by name. Raises LayerError."""
    try:
        output = (call or layer)(given, **(extra or {}))
    except BaseException as error:  # noqa: BLE001 # a user's code may raise anything
        forward_raised(error, index, layer, given)
    return checked_output(index, layer, output)


def checked_output(index: int, layer: nn.Module, output: Any) -> Any:
    """Return a layer's output. Raises LayerError if it is neither a tensor nor a nesting of tensors."""
    if isinstance(output, torch.Tensor):
        return output
    try:
        _, leaves = flatten(output)
    except NestingError as error:
        raise LayerError("BadModel", f"{named(index, layer)} returned {type(output).__name__}: {error}") from error
    if not leaves:
        raise LayerError(
            "BadModel",
            f"{named(index, layer)} returned {type(output).__name__}; each layer takes one tensor, or a nesting of"
            " tensors, and returns one",
        )
    return output


def forward_raised(error: BaseException, index: int, layer: nn.Module, given: object) -> NoReturn:
    """Raise LayerError for a failed forward pass.

    An error that is not the user's is raised unchanged.
    """
    _raise_unless_theirs(error, [layer])
    raise LayerError(
        "LayerRaised",
        f"forward pass: {named(index, layer)} raised {error_text(error)}; it was given {described(given)};"
        f" {_own_lines(error)}",
    ) from error


def loss_raised(error: BaseException, name: str, given: object) -> NoReturn:
    """Raise LayerError for a loss of the user's own; what is not the user's error is raised unchanged."""
    _raise_unless_theirs(error, ())
    raise LayerError(
        "LossRaised",
        f"spec.training.loss {name} raised {error_text(error)}; the last layer gave it {described(given)};"
        f" {_own_lines(error)}",
    ) from error


def backward_raised(
    error: BaseException, layers: Layers, find: Callable[[], int | None], *, loss: str | None = None
) -> NoReturn:
    """Raise LayerError for a failed backward pass.

    `find` reruns the layers to tell which one raises, or an index of no layer where it is the
    loss, of this name. An error that does not come again, and did not pass through the user's
    code, is raised unchanged.
    """
    _raise_unless_theirs(error, [layer for _, layer in layers])
    index = find()
    if index is None and _is_of_a_change_in_place(error):
        raise LayerError(
            "ChangedInPlace", f"backward pass: {_one_of(layers)} {_CHANGED}; {error_text(error)}"
        ) from error
    if index is None and not own_frames(error):
        raise error
    if index is not None and index not in dict(layers):
        raise LayerError(
            "LossRaised",
            f"backward pass: spec.training.loss {loss} raised {error_text(error)}; {_own_lines(error)}",
        ) from error
    whose = _one_of(layers) if index is None else named(index, dict(layers)[index])
    raise LayerError(
        "LayerRaised", f"backward pass: {whose} raised {error_text(error)}; {_own_lines(error)}"
    ) from error


@contextmanager
def preparing(index: int, layer: nn.Module) -> Iterator[None]:
    """Turn what a layer raises inside, while it is moved or set up, into LayerError."""
    try:
        yield
    except BaseException as error:  # a user's code may raise anything; what is not theirs goes on
        _raise_unless_theirs(error, [layer])
        raise LayerError(
            "LayerRaised",
            f"{named(index, layer)} raised {error_text(error)} as it was set up; {_own_lines(error)}",
        ) from error


def is_theirs(error: BaseException) -> bool:
    """Return whether an error raised in a user's code is one that the user can fix."""
    return isinstance(error, (ChangedInPlaceError, SystemExit)) or not (
        isinstance(error, (PipelineJobError, MemoryError, torch.distributed.DistError))
        or _is_out_of_memory(error)
        or _is_the_devices(error)
        or _is_a_persons_wish(error)
        or _is_raised_by_us(error.__traceback__)
    )


def named(index: int, layer: nn.Module) -> str:
    """Return a layer's index and class, for messages."""
    return f"layer {index} ({type(layer).__name__})"


def error_text(error: BaseException) -> str:
    """Return an error's type and message on one line."""
    words = " ".join(_words(error).split())[:_MAX_WORDS]
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        kind += ", as sys.exit and os._exit do"
    return f"{kind}: {words}" if words else kind


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 # a user's exception may not even say what it is
        return ""


def own_frames(error: BaseException) -> list[str]:
    """Return the lines of the user's own code that an error passed through, the innermost last.

    Installed packages count as the user's own only where no other user code was running.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    closest = [frame for frame in frames if not _is_installed(frame.filename)] or frames
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}: `{frame.line}`" for frame in closest]
    return list(dict.fromkeys(lines))[-_MAX_FRAMES:]  # an endless recursion is listed once


def _own_lines(error: BaseException) -> str:
    frames = own_frames(error)
    if frames:
        return f"at {', '.join(frames)}; fix it there, a retry would end the same"
    return "no line of yours was running; fix the layer, or its input, a retry would end the same"


def _raise_unless_theirs(error: BaseException, layers: Sequence[nn.Module]) -> None:
    if not is_theirs(error) or (layers and all(isinstance(layer, BuiltInLayer) for layer in layers)):
        raise error


_CHANGED = (
    "changed a tensor in place, in its forward pass, that an earlier micro-batch's backward pass still needs, a weight"
    " or a buffer: several micro-batches are under way at a time; put a new tensor in its place (self.mean ="
    " self.mean.lerp(x, 0.1), not self.mean.lerp_(x, 0.1)), or use a copy of it (self.mean.clone())"
)


def _is_of_a_change_in_place(error: BaseException) -> bool:
    return isinstance(error, ChangedInPlaceError) or _CHANGED_IN_PLACE in _words(error)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in _words(error)


def _is_the_devices(error: BaseException) -> bool:
    """Return whether a GPU failed; a failed assertion in a kernel is about the kernel's input."""
    words = _words(error)
    if isinstance(error, torch.AcceleratorError):
        return "device-side assert" not in words
    return any(each in words for each in _DEVICE_WORDS)


def _is_a_persons_wish(error: BaseException) -> bool:
    """Return whether Ctrl-C was pressed; with our own signal handlers only code can raise it."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _is_raised_by_us(trace: TracebackType | None) -> bool:
    """Return whether the innermost frame is ours: a hook or an assertion of the runtime."""
    called = trace.tb_next if trace is not None else None  # the first frame is the one that caught it
    if called is None:
        return False
    while called.tb_next is not None:
        called = called.tb_next
    file = called.tb_frame.f_code.co_filename
    return file.startswith(_PACKAGE + os.sep) and not file.startswith(_MODELS) and file != _DOOR


def _is_users(file: str) -> bool:
    if file.startswith(_NOT_THE_USERS):
        return False
    return not file.startswith(_STDLIB) or _is_installed(file)


def _is_installed(file: str) -> bool:
    return any(part in file for part in _INSTALLED)


def _one_of(layers: Layers) -> str:
    (first, layer), (last, _) = layers[0], layers[-1]
    return named(first, layer) if first == last else f"one of layers {first} to {last}"
