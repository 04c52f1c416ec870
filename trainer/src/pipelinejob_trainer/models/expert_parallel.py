"""Expert parallelism: the replicas of a stage divide a block's experts, and send each other the tokens of these.

As in GShard (Lepikhin et al. 2020, arXiv 2006.16668, section 3.2), but no expert has a limit and
no token is dropped, so that ranks give and take unequal numbers of rows. Each copy of a token goes
to the rank that holds its expert, and what the expert gives comes back, where it is weighted. Both
are one exchange of all with all; on the way back gradients take the same two, so that these belong
to the first half of a backward pass. What arrives is sorted by experts, so that one grouped
product multiplies all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelinejob_trainer.communication.expert_group import ExpertGroup

Products = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What a rank's experts give for copies of tokens, (copies, hidden), sorted by expert; `ends` of each, (experts,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dispatch:
    """Where the rows of one pass go.

    A rank gives `given` rows to each rank of the group, and takes `taken` from each. `order` sorts
    those that it took by its own experts, `inverse` puts them back; expert i's end at `ends[i]`,
    int32.
    """

    group: ExpertGroup
    given: tuple[int, ...]
    taken: tuple[int, ...]
    order: torch.Tensor
    inverse: torch.Tensor
    ends: torch.Tensor

    def sent(self, rows: torch.Tensor) -> torch.Tensor:
        """Send rows (rows, width), sorted by expert, to the experts' ranks; return those that came, by rank."""
        return _exchanged(rows, self.group, self.given, self.taken)

    def returned(self, rows: torch.Tensor) -> torch.Tensor:
        """Send rows back to whence they came; return those that came back, sorted by expert."""
        return _exchanged(rows, self.group, self.taken, self.given)


def from_experts(
    tokens: torch.Tensor, chosen: torch.Tensor, counts: torch.Tensor, group: ExpertGroup, products: Products
) -> torch.Tensor:
    """Return what the experts that each token chose give for it, (tokens, per token, hidden).

    `chosen` are their numbers, (tokens, per token), and `counts` how many chose each; `products`
    are those of this rank's experts.
    """
    order = chosen.flatten().argsort(stable=True)
    inverse = order.argsort()
    copies = tokens[:, None].expand(-1, chosen.shape[1], -1).flatten(0, 1)
    given = _permuted(_given(_permuted(copies, order, inverse), counts, group, products), inverse, order)
    return given.view(*chosen.shape, -1)


def _given(copies: torch.Tensor, counts: torch.Tensor, group: ExpertGroup, products: Products) -> torch.Tensor:
    """Return what experts give for copies of tokens, (copies, hidden), sorted by expert, `counts` of each."""
    if not group.is_split:
        return products(copies, counts.cumsum(0, dtype=torch.int32))
    way = _dispatch(counts, group)
    arrived = _permuted(way.sent(copies), way.order, way.inverse)
    return way.returned(_permuted(products(arrived, way.ends), way.inverse, way.order))


def _dispatch(counts: torch.Tensor, group: ExpertGroup) -> _Dispatch:
    """Return where this rank's rows go, given how many it has for each expert, (experts,) int64."""
    announced = group.announced(counts)  # (ranks, own experts)
    to_and_from = torch.stack((counts.view(group.size, -1).sum(1), announced.sum(1))).tolist()
    given, taken = map(tuple, to_and_from)
    experts = torch.arange(announced.shape[1], device=counts.device).repeat(group.size)
    order = experts.repeat_interleave(announced.flatten(), output_size=sum(taken)).argsort(stable=True)
    return _Dispatch(
        group=group,
        given=given,
        taken=taken,
        order=order,
        inverse=order.argsort(),
        ends=announced.sum(0).cumsum(0, dtype=torch.int32),
    )


def divide_experts(layer: nn.Module, group: ExpertGroup) -> None:
    """Let a layer's modules know the group; their parameters are cut by who holds them."""
    for module in layer.modules():
        if hasattr(module, "expert_group"):
            setattr(module, "expert_group", group)  # noqa: B010 # to a type checker modules have tensors alone


def _exchanged(rows: torch.Tensor, group: ExpertGroup, given: Sequence[int], taken: Sequence[int]) -> torch.Tensor:
    found: torch.Tensor = _Exchanged.apply(rows, group, given, taken)
    return found


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, group: ExpertGroup, given: Sequence[int], taken: Sequence[int]
    ) -> torch.Tensor:
        ctx.group, ctx.given, ctx.taken = group, given, taken
        return group.exchanged(rows.contiguous(), given, taken)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.group.exchanged(gradients[0].contiguous(), ctx.taken, ctx.given), None, None, None


def _permuted(rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    permuted: torch.Tensor = _Permutation.apply(rows, order, inverse)
    return permuted


class _Permutation(torch.autograd.Function):
    """Rows in another order; torch's own backward pass of it adds row by row, as if rows could repeat."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return rows[order]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0][inverse], None, None
