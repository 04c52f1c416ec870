"""All of a rank's state as one value: what must be kept so that a resumed run equals one that never stopped.

Data order and random numbers are no part of it: both are functions of the seed and the step (`data.py`,
`randomness.py`), so the step number is their state. Tensors go by global names, so that a snapshot can be restored
under any schedule, by any number of ranks. What stands on several ranks, equal on all, is given by one of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from pipelinejob_trainer.models import Part
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


def take(
    part: Part,
    optimizer: AdamW | None,
    *,
    step: int,
    loss: float | None = None,
    is_mine: Callable[[str], bool] = lambda _: True,
) -> Snapshot:
    """Give the state of a rank, without copying it: valid until the next step.

    `is_mine` says of a global name whether this rank is the one that gives it.
    """
    tensors = {name: each for name, each in _tensors(part, optimizer).items() if is_mine(name.partition("/")[2])}
    return Snapshot(step=step, loss=loss, tensors=tensors)


@torch.no_grad()
def restore(part: Part, optimizer: AdamW | None, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors where `take` would find them; every one is given, of the right shape."""
    for name, target in _tensors(part, optimizer).items():
        target.copy_(tensors[name])


def wanted(part: Part, optimizer: AdamW | None) -> dict[str, torch.Size]:
    """Name the tensors that `restore` needs, and their shapes."""
    return {name: tensor.shape for name, tensor in _tensors(part, optimizer).items()}


def _tensors(part: Part, optimizer: AdamW | None) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = dict(_named(_PARAMETER, part.named_parameters().items()))
    tensors |= dict(_named(_BUFFER, part.named_buffers().items()))
    if optimizer is not None:
        tensors |= dict(_named(_FIRST_MOMENT, optimizer.first_moments.items()))
        tensors |= dict(_named(_SECOND_MOMENT, optimizer.second_moments.items()))
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _named(kind: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
    return ((f"{kind}/{name}", tensor) for name, tensor in tensors)
