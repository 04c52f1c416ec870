"""transformers' balancing loss of experts (`output_router_logits: true`), over stages.

It is no sum of blocks' terms: how many tokens each expert was sent, and how likely it was, are
added up over all blocks before they are multiplied (`load_balancing_loss_func`). Both sums travel
from block to block beside the hidden state, and the head makes the loss of them.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from pipelinejob_trainer.models.huggingface.find import refused

FLAG = "output_router_logits"
_RECORDED = "router_logits"


class Routed(NamedTuple):
    """What blocks so far did: tokens sent to each expert, the sums of their probabilities, tokens in all.

    All are fp32: (experts,), (experts,) and a number.
    """

    sent: torch.Tensor
    probabilities: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A model's balancing loss: its coefficient, its experts, and how many of them each token is sent to."""

    coefficient: float
    experts: int
    per_token: int

    def nothing(self, device: torch.device) -> Routed:
        """Return what no block has done yet."""
        return Routed(
            torch.zeros(self.experts, device=device),
            torch.zeros(self.experts, device=device),
            torch.zeros((), device=device),
        )

    def after(self, before: Routed, router_logits: Sequence[torch.Tensor]) -> Routed:
        """Return the sums after a block, whose routers gave these logits, (tokens, experts)."""
        sent, probabilities, tokens = before
        for logits in router_logits:
            likely = torch.softmax(logits, dim=-1)
            _, chosen = torch.topk(likely, self.per_token, dim=-1)
            kind = torch.float32 if logits.device.type == "cpu" else torch.int32  # as transformers', for determinism
            sent = sent + torch.histc(chosen.reshape(-1).to(kind), bins=self.experts, min=0, max=self.experts)
            probabilities = probabilities + likely.float().sum(dim=0)
            tokens = tokens + likely.shape[0]
        return Routed(sent, probabilities, tokens)

    def loss(self, routed: Routed) -> torch.Tensor:
        """Return the loss of what all blocks did, times the coefficient."""
        sent, probabilities, tokens = routed
        evenness = torch.sum(sent / tokens * (probabilities / tokens).unsqueeze(0)) * self.experts
        return self.coefficient * evenness


def is_asked_for(config: Any) -> bool:
    """Return whether a config wants routers' logits, and with them the loss that is made of them."""
    return bool(getattr(config.get_text_config(), FLAG, False))


def balance_of(config: Any, model: nn.Module) -> Balance | None:
    """Return the balancing loss that a config asks for, None if it asks for none.

    Raises UserError where nothing says what it is.
    """
    if not is_asked_for(config):
        return None
    if FLAG not in inspect.signature(model.forward).parameters:
        raise refused(config, f"its forward does not take {FLAG}, so that nothing says what that adds to the loss")
    text = config.get_text_config()
    found = {
        "coefficient": _first((model, text), ("router_aux_loss_coef", "aux_loss_coef")),
        "experts": _first((model, text), ("num_experts",)),
        "per_token": _first((model, text), ("num_experts_per_tok",)),
    }
    absent = [name for name, value in found.items() if value is None]
    if absent:
        raise refused(config, f"{FLAG} adds a loss of which neither model nor config says the {' and '.join(absent)}")
    return Balance(**found)


def _first(owners: Sequence[object], names: Sequence[str]) -> Any:
    values = (getattr(owner, name, None) for owner in owners for name in names)
    return next((value for value in values if isinstance(value, (int, float))), None)


def let_routers_tell(blocks_owner: nn.Module) -> None:
    """Let the routers of a model of transformers tell their logits to `told_by_routers`."""
    from transformers.utils.output_capturing import maybe_install_capturing_hooks  # noqa: PLC0415 # slow

    maybe_install_capturing_hooks(blocks_owner)


@contextmanager
def told_by_routers() -> Iterator[list[torch.Tensor]]:
    """Gather the logits of the routers that are called inside."""
    from transformers.utils import output_capturing  # noqa: PLC0415 # as above

    told: dict[str, list[torch.Tensor]] = {_RECORDED: []}
    token = output_capturing._active_collector.set(told)  # noqa: SLF001 # the model's own hooks write there
    try:
        yield told[_RECORDED]
    finally:
        output_capturing._active_collector.reset(token)  # noqa: SLF001 # as above
