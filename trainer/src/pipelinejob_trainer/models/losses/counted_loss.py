"""A micro-batch's share of a global batch's loss, and how many of its targets count.

A global batch's loss is the mean over all targets that count, in all micro-batches of all
replicas: not a mean of means. How many those are is known only when the last micro-batch has been
read, after the first gradients were taken. So each micro-batch's loss is its sum over *all* its
targets, those that do not count as zeros, and its gradients are of that; what counts is added up
beside it, and the step's end multiplies loss and gradients by targets / counted, which is exactly
1 where all count.
"""

from typing import NamedTuple

import torch

# What a loss function returns: the mean over the micro-batch, or a sum and what it is over.
Given = torch.Tensor | tuple[torch.Tensor, torch.Tensor | float]


class CountedLoss(NamedTuple):
    """A micro-batch's loss: `value` is the sum over what counts, divided by the number of all targets.

    `counted` is how much counts: a number, or a tensor without dimensions on the device.
    """

    value: torch.Tensor
    counted: torch.Tensor | int


def loss_of(given: Given, targets: torch.Tensor, *, is_alone: bool) -> CountedLoss:
    """Return a micro-batch's loss from what its loss function returned.

    With `is_alone` it is the mean over what counts in this micro-batch, zero if nothing does, and
    all counts: an asynchronous schedule updates before others are read.
    """
    num_targets = targets.numel()
    if isinstance(given, torch.Tensor):
        return CountedLoss(given, num_targets)
    total, count = given
    counted = torch.as_tensor(count, device=total.device).detach()
    if is_alone:
        divisor = torch.where(counted == 0, torch.ones_like(counted), counted).to(total.dtype)
        return CountedLoss(total / divisor, num_targets)
    return CountedLoss(total / num_targets, counted)
