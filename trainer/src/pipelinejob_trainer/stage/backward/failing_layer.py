"""Finds the layer whose backward pass raises, after a stage's whole pass has failed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from pipelinejob_trainer.base.nesting import flatten, tensors, unflatten
from pipelinejob_trainer.stage.backward.autograd_engine import accumulate, capture
from pipelinejob_trainer.stage.border import changeable

Run = Callable[[int, nn.Module, Any], Any]
LOSS = -1  # in place of a layer's index


class _Piece(NamedTuple):
    """A layer's own graph, detached from its input."""

    layer: int
    given: Sequence[torch.Tensor]
    output: Sequence[torch.Tensor]


def failing_layer(
    layers: Sequence[tuple[int, nn.Module]],
    run: Run,
    received: Any,
    gradients: Sequence[torch.Tensor],
    loss: Callable[[Any], torch.Tensor] | None,
) -> int | None:
    """Return the layer that raises, or LOSS, searching from the last one; None if none raises this time.

    `gradients` are those of the output's tensors that have one, or none: then backward starts from
    `loss`, or if that is unknown from ones. It spoils the gradients: only for a process that is
    about to end.
    """
    try:
        pieces, output = _chain(layers, run, received)
    except BaseException:  # noqa: BLE001 # the search may fail: the original error is reported in any case
        return None
    if loss is None:
        return _first_to_raise(pieces, _arriving(pieces[-1].output, gradients))
    try:
        arriving = _starting(output, loss)
    except BaseException:  # noqa: BLE001 # its forward pass has not failed before
        return LOSS
    return _first_to_raise(pieces, arriving)


def _first_to_raise(pieces: list[_Piece], arriving: Sequence[torch.Tensor | None]) -> int | None:
    for piece in reversed(pieces):
        try:
            arriving = _back(piece, arriving)
        except BaseException:  # noqa: BLE001 # whatever it is, here it comes from
            return piece.layer
    return None


def _chain(layers: Sequence[tuple[int, nn.Module]], run: Run, received: Any) -> tuple[list[_Piece], Any]:
    pieces, stream = [], received
    with torch.enable_grad():
        for index, layer in layers:
            structure, leaves = flatten(stream)
            given = [_entering(leaf) for leaf in leaves]
            stream = run(index, layer, unflatten(structure, given))
            pieces.append(_Piece(index, given, tensors(stream)))
    return pieces, stream


def _entering(leaf: torch.Tensor) -> torch.Tensor:
    given = leaf.detach()
    if given.is_floating_point():
        given = changeable(given.requires_grad_())
        given.retain_grad()
    return given


def _arriving(output: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    trained = [leaf for leaf in output if leaf.requires_grad]
    given = gradients if len(gradients) == len(trained) else [torch.ones_like(leaf) for leaf in trained]
    each = iter(given)
    return [next(each) if leaf.requires_grad else None for leaf in output]


def _starting(output: Any, loss: Callable[[Any], torch.Tensor]) -> list[torch.Tensor | None]:
    """Return the gradients of an output's tensors; the loss's own graph alone is gone back through."""
    with torch.enable_grad():
        root = loss(output)
    leaves = tensors(output)
    edges = [get_gradient_edge(leaf) for leaf in leaves if leaf.requires_grad]
    arrived = iter(capture([get_gradient_edge(root)], [torch.ones_like(root)], edges))
    return [next(arrived) if leaf.requires_grad else None for leaf in leaves]


def _back(piece: _Piece, arriving: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    pairs = zip(piece.output, arriving, strict=True)
    starts = [(get_gradient_edge(leaf), each) for leaf, each in pairs if leaf.requires_grad and each is not None]
    if starts:
        accumulate([edge for edge, _ in starts], [each for _, each in starts])
    return [leaf.grad if leaf.requires_grad else None for leaf in piece.given]
