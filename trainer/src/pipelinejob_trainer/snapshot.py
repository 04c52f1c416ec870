"""All of a stage's state as one value: what must be kept so that a resumed run equals one that never stopped.

Data order and random numbers are no part of it: both are functions of the seed and the step (`data.py`,
`Runtime.run_step`), so the step number is their state, and a snapshot can be restored by any number of stages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from pipelinejob_trainer.optimizer import AdamW

_PARAMETER = "parameter"
_BUFFER = "buffer"
_FIRST_MOMENT = "first_moment"
_SECOND_MOMENT = "second_moment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State after `step` steps. Tensors by kind and global name, `parameter/layers.3.qkv.weight`."""

    step: int
    loss: float | None
    tensors: Mapping[str, torch.Tensor] = field(repr=False)


def take(module: torch.nn.Module, optimizer: AdamW | None, *, step: int, loss: float | None = None) -> Snapshot:
    """Give the state of a stage, without copying it: valid until the next step."""
    return Snapshot(step=step, loss=loss, tensors=_tensors(module, optimizer))


@torch.no_grad()
def restore(module: torch.nn.Module, optimizer: AdamW | None, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors where `take` would find them; every one is given, of the right shape."""
    for name, target in _tensors(module, optimizer).items():
        target.copy_(tensors[name])


def wanted(module: torch.nn.Module, optimizer: AdamW | None) -> dict[str, torch.Size]:
    """Name the tensors that `restore` needs, and their shapes."""
    return {name: tensor.shape for name, tensor in _tensors(module, optimizer).items()}


def _tensors(module: torch.nn.Module, optimizer: AdamW | None) -> dict[str, torch.Tensor]:
    # state_dict and not buffers(): what a layer declares as not persistent is its own to make again.
    buffers = _persistent_buffers(module)
    tensors = dict(_named(_PARAMETER, module.named_parameters())) | dict(_named(_BUFFER, buffers.items()))
    if optimizer is not None:
        tensors |= dict(_named(_FIRST_MOMENT, optimizer.first_moments.items()))
        tensors |= dict(_named(_SECOND_MOMENT, optimizer.second_moments.items()))
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    kept = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _named(kind: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
    return ((f"{kind}/{name}", tensor) for name, tensor in tensors)
