"""A mixture of experts: each token is sent to the few feed-forward layers that a router chooses for it.

Shazeer et al. 2017 (arXiv 1701.06538); the router as in Mixtral (Jiang et al. 2024, arXiv
2401.04088). No token is dropped. The tokens are sorted by their experts, so that one grouped
product multiplies each stretch with its expert's matrix. Where replicas divide the experts, the tokens
travel to these and back in between (`expert_parallel.py`).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.spec.job import Experts
from pipelinejob_trainer.communication.expert_group import UNDIVIDED, ExpertGroup
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.expert_parallel import dispatch
from pipelinejob_trainer.models.tensor_parallel import entered_beside, left, with_all_gradients


class MixtureOfExperts(nn.Module):
    """SwiGLU layers behind a router; the result comes with the balancing loss, None where none is asked for.

    `gate_up` are all experts' gates above their other halves, (experts, 2 * inner, hidden), `down`
    is (experts, hidden, inner). A tensor group's ranks have a part of every expert's inner width, an expert
    group's replicas some of the experts; the router, and the loss of what it chose, are of all experts everywhere.
    """

    tensor_group: TensorGroup = ALONE
    expert_group: ExpertGroup = UNDIVIDED

    def __init__(self, experts: Experts, *, hidden: int, inner: int) -> None:
        super().__init__()
        self.num, self.per_token = experts.num, experts.per_token
        self.is_normalized, self.coefficient = experts.normalized, experts.auxiliary_loss
        self.router = nn.Linear(hidden, experts.num, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts.num, 2 * inner, hidden))
        self.down = nn.Parameter(torch.empty(experts.num, hidden, inner))

    def forward(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        group = self.tensor_group
        inside, beside = entered_beside(normed, group)
        tokens = beside.flatten(0, -2)
        probabilities = self._probabilities(tokens)
        weights, chosen = probabilities.topk(self.per_token, dim=-1)  # (tokens, per token)
        if self.is_normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        counts = functional.one_hot(chosen, self.num).sum((0, 1))
        mixed = self._mixed(inside.flatten(0, -2), with_all_gradients(weights, group), chosen, counts)
        is_balanced = self.coefficient and self.training
        balance = self.coefficient * imbalance(probabilities, counts) if is_balanced else None
        return left(mixed.view(inside.shape), group), balance

    def _probabilities(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (tokens, experts), in fp32 always (Fedus et al. 2021, section 2.4)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return torch.softmax(self.router(tokens.float()), dim=-1)

    def _mixed(
        self, tokens: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of what each token's experts give, (tokens, hidden)."""
        order = chosen.flatten().argsort(stable=True)
        inverse = order.argsort()
        copies = tokens[:, None].expand(-1, self.per_token, -1).flatten(0, 1)
        given = _permuted(self._given(_permuted(copies, order, inverse), counts), inverse, order)
        # A sum, not an addition by index, whose order is left to chance on a GPU.
        return (given.view(*chosen.shape, -1) * weights[..., None]).sum(1)

    def _given(self, copies: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return what experts give for copies of tokens, (copies, hidden), sorted by expert, `counts` of each."""
        if not self.expert_group.is_split:
            return self._products(copies, counts.cumsum(0, dtype=torch.int32))
        way = dispatch(counts, self.expert_group)
        arrived = _permuted(way.sent(copies), way.order, way.inverse)
        return way.returned(_permuted(self._products(arrived, way.ends), way.inverse, way.order))

    def _products(self, copies: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Return what this rank's experts give, (copies, hidden); the copies of each end at `ends`."""
        if not len(copies):  # grouped products want rows; this one is of none's
            one = functional.pad(copies, (0, 0, 0, 1))
            return self._products(one, torch.ones_like(ends))[:0]
        gate, up = _grouped(copies, self.gate_up, ends).chunk(2, dim=-1)
        return _grouped(functional.silu(gate) * up, self.down, ends)


def imbalance(probabilities: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the load-balancing loss of one block and micro-batch, 1 where the router prefers no expert.

    num * sum over experts of f * P: f is the share of choices that fell on the expert (`counts`), P
    its mean probability (Fedus et al. 2021, arXiv 2101.03961, section 2.2; GShard, arXiv
    2006.16668). Only P has a gradient.
    """
    shares = counts / counts.sum()
    return len(counts) * (shares * probabilities.mean(0)).sum()


def _grouped(tokens: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply each stretch of tokens, which ends at `ends`, with its matrix (experts, outputs, inputs)."""
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind):  # autocast leaves grouped products alone
        dtype = torch.get_autocast_dtype(kind)
        tokens, matrices = tokens.to(dtype), matrices.to(dtype)
    return functional.grouped_mm(tokens, matrices.transpose(1, 2), offs=ends)


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
