"""Layers compiled by `torch.compile`, each by itself: `spec.training.compile: Layers`.

A compiled layer is one function forward and one backward. Schedules whose backward passes come in
halves are refused.

Random numbers are torch's own, in the order of the layer's code: a layer that is run again draws
the same ones, though its second run is compiled by itself, as it has gradients and the first had
not.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipelinejob_trainer.base.errors import LayerError, UserError
from pipelinejob_trainer.base.user_code import named
from pipelinejob_trainer.models.part import LayerEntry

_VARIANTS = 64  # of one layer's code: with gradients and without, training or not, each number of rows


def prepare(device: torch.device) -> None:
    """Set the compiler up; it is there, or UserError says what is missing."""
    from torch._dynamo import config as tracing  # noqa: PLC0415 # seconds, for those that compile
    from torch._inductor import config as code  # noqa: PLC0415 # as above

    if device.type == "cpu":
        wanted = [each for each in code.cpp.cxx if each]
        if not any(shutil.which(each.split()[0]) for each in wanted):
            raise UserError(
                "NoCompiler",
                f"spec.training.compile: Layers needs a C++ compiler on processors, and no {wanted[-1]} is in this"
                " image; install one (Debian: apt-get install g++), name it in the variable CXX, or set compile to Off",
            )
    code.fallback_random = True
    code.compile_threads = 1  # a rank has its share of the processors, and starts no processes
    tracing.recompile_limit = max(tracing.recompile_limit, _VARIANTS)
    tracing.accumulated_recompile_limit = max(tracing.accumulated_recompile_limit, 4 * _VARIANTS)


def compiled(layers: Sequence[LayerEntry]) -> Mapping[int, Callable[..., Any]]:
    """Return what to call in place of layers, by index; a runner's blocks it compiles itself."""
    calls: dict[int, Callable[..., Any]] = {}
    for layer in layers:
        if layer.runner is None:
            calls[layer.index] = torch.compile(layer.module, dynamic=False)
        else:
            layer.runner.compile(layer.index)
    return calls


def not_compiled(index: int, layer: nn.Module, error: BaseException) -> LayerError | None:
    """Return the error to raise for a layer that the compiler failed on; None for what the layer itself raised."""
    from torch._dynamo.exc import BackendCompilerFailed, InternalTorchDynamoError  # noqa: PLC0415 # loaded by then

    if not isinstance(error, (BackendCompilerFailed, InternalTorchDynamoError)):
        return None
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return LayerError(
        "NotCompiled",
        f"spec.training.compile: {named(index, layer)} cannot be compiled here: {lines[0]}; set compile to Off, or mark"
        " what is in the way with torch.compiler.disable",
    )
