"""A mixture of experts: each token is sent to the few feed-forward layers that a router chooses for it.

Shazeer et al. 2017 (arXiv 1701.06538); the router as in Mixtral (Jiang et al. 2024, arXiv
2401.04088). No token is dropped. The tokens are sorted by their experts, so that one grouped
product multiplies each stretch with its expert's matrix. Where replicas divide the experts, the tokens
travel to these and back in between (`expert_parallel.py`).
"""

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.spec.job import Experts
from pipelinejob_trainer.communication.expert_group import UNDIVIDED, ExpertGroup
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.expert_parallel import from_experts
from pipelinejob_trainer.models.tensor_parallel import entered_beside, left, with_all_gradients


class MixtureOfExperts(nn.Module):
    """SwiGLU layers behind a router; the result comes with the balancing loss, None where none is asked for.

    `gate_up` are all experts' gates above their other halves, (experts, 2 * inner, hidden), `down`
    is (experts, hidden, inner). A tensor group's ranks have a part of every expert's inner width,
    an expert group's replicas some of the experts; the router, and the loss of what it chose, are
    of all experts everywhere.
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
        given = from_experts(inside.flatten(0, -2), chosen, counts, self.expert_group, self._products)
        # A sum, not an addition by index, whose order is left to chance on a GPU.
        mixed = (given * with_all_gradients(weights, group)[..., None]).sum(1)
        is_balanced = self.coefficient and self.training
        balance = self.coefficient * imbalance(probabilities, counts) if is_balanced else None
        return left(mixed.view(inside.shape), group), balance

    def _probabilities(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (tokens, experts), in fp32 always (Fedus et al. 2021, section 2.4)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return torch.softmax(self.router(tokens.float()), dim=-1)

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
