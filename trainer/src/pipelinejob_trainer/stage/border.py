"""Tensors at a stage's borders: received ones, their hooks, the marker for "no gradient".

A layer's output may have no gradient; then the layers before it have none either, as in one
process, and are not updated: with gradients of zero their weights would decay. A link must carry a
tensor, so the marker is all negative zeros, which no real backward pass produces.

Of a single tensor that was received, any of a type that can have a gradient has one. Of a nesting
those have one that needed it in the stage before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge, increment_version

from pipelinejob_trainer.base import nesting
from pipelinejob_trainer.base.errors import ChangedInPlaceError
from pipelinejob_trainer.base.nesting import Parcel, Passed

_unsafe_view = torch.ops.aten._unsafe_view.default  # noqa: SLF001 # it has no other name


def changeable(received: torch.Tensor) -> torch.Tensor:
    """Return a tensor that layers can change in place.

    Torch forbids that for leaves and their views. As torch's own matmul does: the same memory, but
    not a view for autograd.
    """
    return _unsafe_view(received, received.shape) if received.requires_grad else received


def require_gradients(received: Passed) -> tuple[torch.Tensor, ...]:
    """Let what was received have gradients; return the tensors that will."""
    if isinstance(received, Parcel):
        return tuple(leaf.requires_grad_() for leaf in received.wanted)
    return (received.requires_grad_(),) if received.is_floating_point() or received.is_complex() else ()


def copied(received: Passed) -> Any:
    """Return a copy of what was received, for layers to work on."""
    return (
        received.nested([leaf.clone() for leaf in received.leaves])
        if isinstance(received, Parcel)
        else (received.clone())
    )


def as_in_training(received: Passed) -> Any:
    """Return a copy of what was received, that has gradients where it will have them."""
    if isinstance(received, torch.Tensor):
        copy = received.clone()
        require_gradients(copy)
        return changeable(copy)
    pairs = zip(received.leaves, received.is_wanted, strict=True)
    return received.nested([changeable(leaf.clone().requires_grad_(is_wanted)) for leaf, is_wanted in pairs])


class Entering:
    """A nesting that enters a stage's layers, which may change its tensors in place."""

    def __init__(self, received: Parcel) -> None:
        self._received = received
        self._leaves = [changeable(leaf) for leaf in received.leaves]
        self._versions = [leaf._version for leaf in self._leaves]  # noqa: SLF001 # torch's documents name it
        self.value = received.nested(self._leaves)

    def note_changes(self) -> None:
        """Tell autograd what was changed: the stage before may be of this process, and have saved it.

        Raises ChangedInPlaceError where another tensor would have changed too in one process.
        """
        for place, (leaf, entered) in enumerate(zip(self._received.leaves, self._leaves, strict=True)):
            if entered._version == self._versions[place]:  # noqa: SLF001 # as above
                continue
            if self._received.is_shared[place]:
                path = nesting.paths(self._received.structure)[place]
                raise ChangedInPlaceError(
                    f"{path}, which this stage was given, was changed in place; it uses memory of another tensor beside"
                    " it, and over a border each has its own: change a copy (x.clone()), or give copies"
                )
            if entered is not leaf:
                increment_version(leaf)


def without_hooks(output: torch.Tensor) -> torch.Tensor:
    """Return a node above a tensor's hooks, so that only one half of a pass calls them."""
    return output.view_as(output) if output._backward_hooks else output  # noqa: SLF001 # torch tells it no other way


def entrances_at(output: Any) -> tuple[Any, tuple[GradientEdge, ...]]:
    """Return a layer's output, without hooks, and the places in the graph where it was made."""
    if isinstance(output, torch.Tensor):
        output = without_hooks(output) if output.requires_grad else output
        return output, _inner([output])
    structure, leaves = nesting.flatten(output)
    leaves = tuple(without_hooks(leaf) if leaf.requires_grad else leaf for leaf in leaves)
    return nesting.unflatten(structure, leaves), _inner(leaves)


def _inner(leaves: Sequence[torch.Tensor]) -> tuple[GradientEdge, ...]:
    """Return the edges of tensors that an operation made: a parameter's own gradient must not end there."""
    return tuple(get_gradient_edge(leaf) for leaf in leaves if leaf.requires_grad and not leaf.is_leaf)


def no_gradient(of: torch.Tensor) -> torch.Tensor:
    """Return the marker for "no gradient" of a tensor."""
    zeros = torch.zeros_like(of)
    return zeros.neg_() if zeros.is_floating_point() or zeros.is_complex() else zeros


def is_no_gradient(gradient: torch.Tensor) -> bool:
    """Return whether a gradient is that marker. Waits for the device."""
    values = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    return bool(((values == 0) & torch.signbit(values)).all())
