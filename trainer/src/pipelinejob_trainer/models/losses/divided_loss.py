"""The loss where logits are divided over a tensor group: each rank has those of some tokens of the vocabulary.

The cross entropy is computed on the parts: of each target only its maximum, the sum of
exponentials and the target's own logit are exchanged. A loss of the user's own gets whole logits,
on every rank.
"""

from typing import Any

import torch

from pipelinejob_trainer.base.targets import IGNORED
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.losses.counted_loss import Given
from pipelinejob_trainer.models.losses.loss import Loss, OwnLoss, all_count
from pipelinejob_trainer.models.tensor_parallel import gathered


class DividedCrossEntropy:
    """A micro-batch's cross entropy in nats, as `token_cross_entropy` gives it, of a rank's part of the logits."""

    def __init__(self, group: TensorGroup, vocabulary: int) -> None:
        self._group = group
        self._first, self._end = group.bounds(vocabulary)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> Given:
        """Return the mean where all targets count, else sum and count; equal on all ranks.

        `logits` are (batch, sequence, this rank's tokens).
        """
        rows, wanted = logits.flatten(0, -2).float(), targets.flatten()
        losses: torch.Tensor = _DividedCrossEntropy.apply(rows, wanted, (self._first, self._end), self._group)
        if all_count(targets):
            return losses.mean()
        return losses.sum(), (targets != IGNORED).sum()


class GatheredLoss(OwnLoss):
    """A loss of the user's own, given whole logits."""

    def __init__(self, loss: OwnLoss, group: TensorGroup, vocabulary: int) -> None:
        self.name = loss.name
        self._loss = loss
        self._group = group
        self._vocabulary = vocabulary

    def __call__(self, output: Any, targets: torch.Tensor) -> Given:
        """Return what the loss gives for whole logits; see `OwnLoss`."""
        return self._loss(gathered(output, self._group, self._vocabulary), targets)


def divided(loss: Loss, group: TensorGroup, vocabulary: int) -> Loss:
    """Return a loss that takes a rank's part of the logits."""
    if not group.is_split:
        return loss
    if isinstance(loss, OwnLoss):
        return GatheredLoss(loss, group, vocabulary)
    return DividedCrossEntropy(group, vocabulary)


class _DividedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, targets: torch.Tensor, bounds: tuple[int, int], group: TensorGroup
    ) -> torch.Tensor:
        first, end = bounds
        largest = rows.max(dim=-1).values
        group.largest(largest)
        exponentials = (rows - largest[:, None]).exp_()
        is_here = (targets >= first) & (targets < end)
        place = (targets - first).masked_fill(~is_here, 0)
        own = rows.gather(1, place[:, None])[:, 0] - largest
        sums = torch.stack((exponentials.sum(dim=-1), own.masked_fill(~is_here, 0.0)))
        group.add(sums)
        counts = targets != IGNORED
        ctx.save_for_backward(exponentials.div_(sums[0][:, None]), place, is_here, counts)
        return (sums[0].log() - sums[1]).masked_fill(~counts, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        probabilities, place, is_here, counts = ctx.saved_tensors
        of_logits = probabilities.clone()
        of_logits.scatter_add_(1, place[:, None], -is_here.to(of_logits.dtype)[:, None])
        return of_logits.mul_((gradients[0] * counts)[:, None]), None, None, None
