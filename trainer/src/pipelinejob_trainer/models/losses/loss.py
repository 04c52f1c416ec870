"""The loss of a micro-batch: cross entropy, or a function of the user's own (`spec.training.loss`).

A loss takes what the last layer returned and targets, int64 (batch, sequence), where -100 does not
count. One of the user's returns a scalar, the mean over the micro-batch's counted tokens, or a
pair (sum, count).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn import functional

from pipelinejob.spec.training import Training
from pipelinejob_trainer.base.errors import LayerError, UserError
from pipelinejob_trainer.base.nesting import NestingError, flatten
from pipelinejob_trainer.base.targets import IGNORED
from pipelinejob_trainer.base.user_code import loss_raised
from pipelinejob_trainer.models.losses.counted_loss import Given, loss_of
from pipelinejob_trainer.models.own.entrypoint import find

Loss = Callable[[Any, torch.Tensor], Given]


def load_loss(training: Training, device: torch.device) -> Loss:
    """Return a job's loss, on a device.

    Raises UserError for a function that cannot be found, or that has parameters.
    """
    if training.loss is None:
        return token_cross_entropy
    function = find(training.loss, field="spec.training.loss")
    for owner in (function, getattr(function, "__self__", None)):
        if isinstance(owner, nn.Module):
            _check_parameters(training.loss, [name for name, _ in owner.named_parameters()])
            owner.to(device)
    return OwnLoss(training.loss, function)


class OwnLoss:
    """A loss of the user's own, called and checked."""

    def __init__(self, name: str, function: Callable[..., object]) -> None:
        self.name = name
        self._function = function
        self._is_checked = False

    def __call__(self, output: Any, targets: torch.Tensor) -> Given:
        """Return the mean over a micro-batch's counted tokens, or their sum and count.

        The tensor is fp32 or fp64, without dimensions.

        Raises LayerError for whatever the function raises, or returns beside a loss.
        """
        before = None if self._is_checked else _nodes(output)
        try:
            found = self._function(output, targets.clone())  # a copy, which it may change
        except BaseException as error:  # noqa: BLE001 # a user's code may raise anything
            loss_raised(error, self.name, output)
        given = self._checked(found)
        loss = given if isinstance(given, torch.Tensor) else given[0]
        if before is not None and loss.requires_grad:
            self._is_checked = True
            _check_parameters(self.name, _own_leaves(loss, before))
        return given

    def _checked(self, found: object) -> Given:
        if isinstance(found, tuple) and len(found) == 2:  # noqa: PLR2004 # a pair
            total, count = found
            return self._scalar(total), self._count(count)
        return self._scalar(found)

    def _scalar(self, found: object) -> torch.Tensor:
        if not isinstance(found, torch.Tensor) or found.numel() != 1 or not found.is_floating_point():
            raise LayerError("BadLoss", f"spec.training.loss {self.name} returned {_described(found)}; {_RULE}")
        scalar = found.reshape(())
        return scalar.float() if scalar.dtype.itemsize < torch.float32.itemsize else scalar

    def _count(self, count: object) -> torch.Tensor | float:
        if isinstance(count, torch.Tensor) and count.numel() == 1 and not count.requires_grad:
            return count.reshape(())
        if isinstance(count, (int, float)) and count >= 0:
            return count
        raise LayerError(
            "BadLoss",
            f"spec.training.loss {self.name} returned a pair whose count is {_described(count)}; {_RULE}",
        )


def cross_entropy(logits: Any, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum over a micro-batch's targets that count, divided by the number of all, in nats.

    Arguments and errors are those of `token_cross_entropy`.
    """
    return loss_of(token_cross_entropy(logits, targets), targets, is_alone=False).value


def token_cross_entropy(logits: Any, targets: torch.Tensor) -> Given:
    """Return a micro-batch's cross entropy in nats: the mean where all targets count, else sum and count.

    `logits` are (batch, sequence, vocabulary), `targets` (batch, sequence). Raises UserError for
    logits of another shape or type, or of too few classes.
    """
    if not isinstance(logits, torch.Tensor):
        raise LayerError(
            "BadModel",
            f"the last layer returned {type(logits).__name__}; it must return logits, one tensor, or"
            " spec.training.loss must name a function that takes what it returns",
        )
    if logits.shape[:-1] != targets.shape:
        raise LayerError(
            "BadModel",
            f"the last layer returned shape {tuple(logits.shape)}; it must return logits of shape"
            f" {(*targets.shape, 'vocabulary')}",
        )
    if not logits.is_floating_point():
        raise LayerError(
            "BadModel", f"the last layer returned {logits.dtype}; it must return logits of a real float type"
        )
    rows, row_targets = logits.flatten(0, -2).float(), targets.flatten()
    try:
        if all_count(targets):  # torch's mean is the same to the last bit, and quicker
            return functional.cross_entropy(rows, row_targets)
        return functional.cross_entropy(rows, row_targets, reduction="sum"), (targets != IGNORED).sum()
    except IndexError as error:
        raise LayerError("BadModel", _out_of_range(logits.shape[-1], targets)) from error


def all_count(targets: torch.Tensor) -> bool:
    """Return whether all targets count, where that can be told without waiting for a device."""
    return targets.device.type == "cpu" and targets.numel() > 0 and int(targets.min()) >= 0


def _out_of_range(classes: int, targets: torch.Tensor) -> str:
    least = int(targets[targets != IGNORED].min())
    if least < 0:
        return f"a target is {least}; targets are tokens from 0 on, or {IGNORED} where one does not count"
    return (
        f"the last layer returned logits for {classes} classes, but the data have token {int(targets.max())}; return"
        " one for each token of the vocabulary: 256 where text is read as bytes, else as many as the tokenizer has"
    )


_RULE = (
    "a loss returns a scalar tensor of a real float type, the mean over the micro-batch's counted tokens, or a pair"
    " (sum, count) of such a tensor and a number without a gradient"
)


def _check_parameters(name: str, parameters: list[str]) -> None:
    if parameters:
        raise UserError(
            "LossWithParameters",
            f"spec.training.loss {name}: it has parameters of its own ({', '.join(parameters[:3])}), which no stage"
            " would train or save; make what is trained a layer, and let the last layer return what the loss needs",
        )


def _own_leaves(loss: torch.Tensor, before: set[Node]) -> list[str]:
    """Return the leaves that a loss depends on by itself, not by what the layers returned."""
    leaves, seen, stack = [], set(before), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(f"{type(variable).__name__} of shape {tuple(variable.shape)}")
        stack.extend(child for child, _ in node.next_functions)
    return leaves


def _nodes(output: Any) -> set[Node] | None:
    """Return where the graph of the layers' output ends; None if it is no nesting of tensors."""
    try:
        _, leaves = flatten(output)
    except NestingError:  # between the last layer and the loss goes whatever the two agree on
        return None
    return {get_gradient_edge(leaf).node for leaf in leaves if leaf.requires_grad}


def _described(found: object) -> str:
    if isinstance(found, torch.Tensor):
        return f"{found.dtype} of shape {tuple(found.shape)}"
    return "nothing" if found is None else f"{type(found).__name__}"
