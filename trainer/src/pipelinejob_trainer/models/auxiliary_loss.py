"""A layer's own term of the loss, added where the layer stands.

    result = with_auxiliary_loss(result, term)

changes nothing in the forward pass. In the backward pass the term gets the gradient that it would
have as a summand of the micro-batch's loss, so nothing has to be sent to the last stage: Megatron
does the same (MoEAuxLossAutoScaler). The loss that is reported does not contain the term.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_weight: ContextVar[float] = ContextVar("loss_weight", default=1.0)


@contextmanager
def weighing(loss_weight: float) -> Iterator[None]:
    """Give terms inside the weight that the micro-batch has in the mean over the global batch.

    Outside any micro-batch it is 1.
    """
    token = _weight.set(loss_weight)
    try:
        yield
    finally:
        _weight.reset(token)


def with_auxiliary_loss(result: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
    """Return `result`; its backward pass adds the gradient of `term`, a scalar."""
    added: torch.Tensor = _AuxiliaryLoss.apply(result, term, _weight.get())
    return added


class _AuxiliaryLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, term: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight, ctx.like = weight, (term.dtype, term.device)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        dtype, device = ctx.like
        return gradients[0], torch.full((), ctx.weight, dtype=dtype, device=device), None
