"""One micro-batch's way through a stage: what it holds from its forward pass to the end of its backward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from pipelinejob_trainer.base.nesting import Parcel, Passed, flatten, parcel
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.stage.backward.saved_tensors import SavedTensors
from pipelinejob_trainer.stage.backward.split_backward import SplitBackward
from pipelinejob_trainer.stage.layer_state import PassState


@dataclass(slots=True)
class Pass:
    """One micro-batch in flight: its inputs, and once layers were recorded, its graph.

    `roots` are the places in the graph of the outputs that get a gradient; the outputs themselves
    are freed once they are sent. `wanted` are the received tensors that get one. `found` is the
    layers' state at their first run, where they are run again.
    """

    received: Passed
    targets: torch.Tensor | None
    loss_weight: float
    seed: int | None
    positions: torch.Tensor | None = None
    is_alone: bool = False  # whether its loss is the mean over what counts in it
    counted: torch.Tensor | int | None = None  # on the last stage, once the loss is there
    found: PassState | None = None
    is_recorded: bool = False
    wanted: tuple[torch.Tensor, ...] = ()
    roots: tuple[GradientEdge | None, ...] = ()
    entrances: tuple[GradientEdge, ...] = ()  # where the first half of a split backward pass goes back to
    saved: SavedTensors | None = None
    split: SplitBackward | None = None


def begin(received: Passed | Inputs, targets: torch.Tensor | None, loss_weight: float, seed: int | None) -> Pass:
    """Return a micro-batch's pass before its layers are run."""
    if isinstance(received, Inputs):
        return Pass(received.tokens, targets, loss_weight, seed, received.positions)
    return Pass(received, targets, loss_weight, seed)


def copy_of(positions: torch.Tensor | None) -> torch.Tensor | None:
    """Return positions as a layer may have them."""
    return None if positions is None else positions.clone()  # the layer's to change, and it may be run again


def as_it_is(received: Passed) -> Any:
    """Return what was received as the layers take it, not copied."""
    return received.nested(received.leaves) if isinstance(received, Parcel) else received


def without_gradients(output: Any) -> Parcel:
    """Return a nesting as the next stage gets it where nothing has a gradient."""
    structure, leaves = flatten(output)
    return parcel(structure, leaves, [False] * len(leaves))
