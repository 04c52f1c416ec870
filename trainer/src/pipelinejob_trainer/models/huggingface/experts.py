"""How the experts of a model of transformers are divided over replicas: by the plan of its family (`_ep_plan`).

It names modules that hold a block's experts (`ep_dispatch_experts`) and their parameters, one
matrix of each expert behind the other (`grouped_gemm`). Such a module takes tokens, the experts
that each chose, and their weights. Each rank keeps some experts; tokens are sent to these one copy
for each expert, the module's own forward multiplies them with weights of one, and what comes back
is weighted here. Routers, and experts that all tokens share, are whole on every replica.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.expert_group import ExpertGroup
from pipelinejob_trainer.models.expert_parallel import from_experts
from pipelinejob_trainer.models.huggingface.division import pattern_of
from pipelinejob_trainer.models.tensor_parallel import Slice

FIELD = "spec.parallelism.expert"

_MODULE, _MATRICES = "ep_dispatch_experts", "grouped_gemm"


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedExperts:
    """Which modules hold experts, by transformers' full names, and how their parameters are divided."""

    group: ExpertGroup
    modules: tuple[str, ...]
    slices: Mapping[str, Slice]


def divided_experts(model: nn.Module, config: Any, group: ExpertGroup) -> DividedExperts:
    """Find out how a model's experts, on the meta device, are divided.

    Raises UserError where its family brings no plan, or one that cannot be followed, or where they
    do not divide.
    """
    plan: Mapping[str, str] = getattr(model, "_ep_plan", None) or {}
    modules = {name: each for name, each in model.named_modules() if plan.get(pattern_of(name)) == _MODULE}
    if not modules:
        raise _refused(config, group, "transformers brings no plan that says which they are (base_model_ep_plan)")
    slices: dict[str, Slice] = {}
    for name, module in modules.items():
        num = getattr(module, "num_experts", None)
        for slot, parameter in module.named_parameters():
            full = f"{name}.{slot}"
            if plan.get(pattern_of(full)) != _MATRICES or parameter.shape[0] != num:
                raise _refused(config, group, f"{pattern_of(full)} is no matrix of each expert behind the other")
            slices[full] = Slice(0, 1, tuple(parameter.shape))
        if num is None or num % group.size:
            raise UserError(
                "NotDivided",
                f"{FIELD}: {group.size} replicas cannot share {num} experts equally; use a divisor of {num}",
            )
    return DividedExperts(group=group, modules=tuple(modules), slices=slices)


def install_experts(divided: DividedExperts, model: nn.Module, own: frozenset[nn.Module]) -> None:
    """Let those of a model's modules that are a rank's own send tokens to the ranks that hold their experts."""
    named = dict(model.named_modules())
    for name in divided.modules:
        module: Any = named[name]
        if module in own:
            module.forward = _of_all(module.forward, module.num_experts, divided.group)
            module.num_experts //= divided.group.size


def _of_all(forward: Callable[..., torch.Tensor], num: int, group: ExpertGroup) -> Callable[..., torch.Tensor]:
    """Return the forward of all experts, given that of this rank's."""

    def products(copies: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        if not len(copies):  # grouped products want rows; this one is of none's
            one = functional.pad(copies, (0, 0, 0, 1))
            return products(one, torch.ones_like(ends))[:0]
        rows = torch.arange(len(copies), device=copies.device)
        chosen = torch.searchsorted(ends, rows.to(ends.dtype), right=True)
        return forward(copies, chosen[:, None], copies.new_ones(len(copies), 1))

    def given(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        counts = functional.one_hot(chosen, num).sum((0, 1))
        mixed = (from_experts(hidden, chosen, counts, group, products) * weights[..., None]).sum(1)
        return mixed.to(hidden.dtype)

    return given


def _refused(config: Any, group: ExpertGroup, reason: str) -> UserError:
    return UserError(
        "NotDivided",
        f"{FIELD}: {group.size} replicas cannot divide the experts of a {config.model_type}: {reason}; leave expert"
        " out",
    )
