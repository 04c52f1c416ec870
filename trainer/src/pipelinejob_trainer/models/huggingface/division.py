"""How a model of transformers is divided over a tensor group: by the plan that its family brings (`_tp_plan`).

The plan names modules and parameters, with numbers as `*`, and a style for each. As transformers'
`distributed/tensor_parallel.py` has them, of which this is the same in plain parts of parameters:

- `colwise`, a linear layer of which each rank has some outputs; `packed_colwise` where two lie in one;
- `rowwise`, one of which it has some inputs: what ranks get is added up;
- `colwise_gather_output` and `rowwise_split_input`, the same where what lies between must be whole;
- `embedding_rowwise`, a table of which it has some rows;
- `replicated_with_grad_allreduce`, a norm of heads, whole, with the gradients of a rank's heads;
- `moe_tp_experts`, experts of each of which a rank has a part.

What no pattern names is whole on every rank. The head's logits are left divided, for the loss
takes them so. Other styles are refused by name, and so is a model whose embedding or head the plan
does not name.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.huggingface.files.folder import few
from pipelinejob_trainer.models.tensor_parallel import (
    Slice,
    closing,
    entered,
    gathered,
    left,
    looked_up_by,
    own_columns,
    with_all_gradients,
)

FIELD = "spec.parallelism.tensor"

_COLUMNS = frozenset({"colwise", "colwise_rep", "colwise_gather_output", "packed_colwise"})
_ROWS = frozenset({"rowwise", "rowwise_rep", "rowwise_split_input"})
_GATHERS = frozenset({"colwise_rep", "colwise_gather_output"})
_SPLITS = frozenset({"rowwise_rep", "rowwise_split_input"})
_TABLE = "embedding_rowwise"
_ADDS_GRADIENTS = "replicated_with_grad_allreduce"
_EXPERTS = "moe_tp_experts"
_OF_PARAMETERS = frozenset({"colwise", "packed_colwise", "rowwise"})
_WHOLE = frozenset({_ADDS_GRADIENTS, _EXPERTS, "replicate"})
_COUNTS = {"num_attention_heads": "heads", "num_key_value_heads": "heads of keys and values"}
_FEW = 0.05
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "activation_dropout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How one model is divided.

    `styles` are by transformers' full names of modules, `slices` by those of parameters; the
    logits are of `vocabulary` tokens, of which each rank has its part.
    """

    group: TensorGroup
    styles: Mapping[str, str]
    slices: Mapping[str, Slice]
    vocabulary: int
    remark: str | None = None  # for the user's eyes


def division_of(model: nn.Module, config: Any, group: TensorGroup) -> Division:
    """Find out how a model on the meta device is divided.

    Raises UserError where its family brings no plan, or one that cannot be followed, or where
    sizes do not divide.
    """
    plan: Mapping[str, str] = getattr(model, "_tp_plan", None) or {}
    named = dict(model.named_modules())
    styles = {name: style for name in named if (style := plan.get(pattern_of(name))) is not None}
    _check_ends(model, config, group, named, styles)
    whole = dict(model.named_parameters(remove_duplicate=False))
    slices = {
        name: replace(found, shape=tuple(parameter.shape))
        for name, parameter in whole.items()
        if (found := _slice(config, name, parameter, plan, styles)) is not None
    }
    _check_experts(config, named, styles, slices)
    ends = [f"{name}.weight" for name in _ends(model, named)]
    _check_sizes(config, group, styles, {name: each for name, each in slices.items() if name not in ends})
    return Division(
        group=group,
        styles=styles,
        slices=slices,
        vocabulary=whole[ends[-1]].shape[0],
        remark=_remark(config, whole, slices),
    )


def _remark(config: Any, parameters: Mapping[str, torch.Tensor], slices: Mapping[str, Slice]) -> str | None:
    """Say which matrices a family's plan leaves whole, where they are more than routers."""
    whole = {name: each.numel() for name, each in parameters.items() if name not in slices and each.ndim > 1}
    share = sum(whole.values()) / sum(each.numel() for each in parameters.values())
    if share < _FEW:
        return None
    return (
        f"{FIELD}: transformers' plan for a {config.model_type} leaves {few(dict.fromkeys(map(pattern_of, whole)))}"
        f" whole on every rank, {share:.0%} of its parameters; what is planned counts them as divided"
    )


def install(division: Division, model: nn.Module, own: frozenset[nn.Module], is_read: Callable[[], bool]) -> None:
    """Let those of a model's modules that are a rank's own work on its parts of their parameters.

    `is_read` tells whether what the embedding gives is used: stages run it for its shape alone,
    too.
    """
    group, named = division.group, dict(model.named_modules())
    _, head = _ends(model, named)
    doors: dict[str, _Door] = {}
    for name, style in division.styles.items():
        module = named[name]
        if module not in own:
            continue
        if style in _COLUMNS:
            parent = name.rpartition(".")[0]
            door = doors.setdefault(parent, _Door(group))
            door.uses += 1
            module.forward = _of_columns(module, door, group, gathers=style in _GATHERS and name != head)
        elif style in _ROWS:
            module.forward = _of_rows(module, group, splits=style in _SPLITS)
        elif style == _TABLE:
            module.forward = _of_table(module, group, is_read)
        elif style == _EXPERTS:
            module.forward = _of_experts(module.forward, group)
        elif style == _ADDS_GRADIENTS:
            module.forward = _with_all_gradients(module, group)
    for name, door in doors.items():
        if door.uses > 1:
            named[name].forward = door.around(named[name].forward)


class _Door:
    """Where a branch begins: what its first matrices are given is entered once, and gradients come back as one sum."""

    def __init__(self, group: TensorGroup) -> None:
        self.uses = 0
        self._group = group
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._last is not None and self._last[0] is x:
            return self._last[1]
        inside = entered(x, self._group)
        if self.uses > 1:
            self._last = (x, inside)
        return inside

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a module's forward that keeps nothing of what was entered in it."""

        def kept_inside(*args: Any, **kwargs: Any) -> Any:
            try:
                return forward(*args, **kwargs)
            finally:
                self._last = None

        return kept_inside


def _of_columns(linear: Any, door: _Door, group: TensorGroup, *, gathers: bool) -> Callable[..., Any]:
    whole, multiply = linear.out_features, linear.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        part: torch.Tensor = multiply(door(x))
        return gathered(part, group, whole) if gathers else part

    return forward


def _of_rows(linear: Any, group: TensorGroup, *, splits: bool) -> Callable[..., Any]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return closing(linear, own_columns(x, group) if splits else x, group)

    return forward


def _of_table(table: Any, group: TensorGroup, is_read: Callable[[], bool]) -> Callable[..., Any]:
    look_up, extent = table.forward, table.num_embeddings
    first, end = group.bounds(extent)
    if table.padding_idx is not None:
        table.padding_idx = table.padding_idx - first if first <= table.padding_idx < end else None

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        if is_read():
            return looked_up_by(look_up, tokens, group, extent)
        shape: torch.Tensor = look_up(tokens)  # of the token 0, a row that every part has
        return shape

    return forward


def _of_experts(forward: Callable[..., Any], group: TensorGroup) -> Callable[..., Any]:
    def mixed(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        output = forward(entered(hidden, group), chosen, with_all_gradients(weights, group))
        return left(output.clone() if output._is_view() else output, group)  # noqa: SLF001 # which must not be a view

    return mixed


def _with_all_gradients(module: nn.Module, group: TensorGroup) -> Callable[..., Any]:
    inner: Callable[..., Any] = module.forward
    slots: dict[str, Any] = module._parameters  # noqa: SLF001 # what stands in for a moment is no parameter

    def forward(*args: Any, **kwargs: Any) -> Any:
        own = dict(slots)
        slots.update({name: with_all_gradients(each, group) for name, each in own.items() if each is not None})
        try:
            return inner(*args, **kwargs)
        finally:
            slots.update(own)

    return forward


def pattern_of(name: str) -> str:
    """Return what a plan calls a module or parameter of this full name."""
    return re.sub(r"\d+", "*", name)


def _ends(model: Any, named: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the names of embedding and head; "" for one that a model does not have."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return tuple(next((name for name, each in named.items() if each is end), "") for end in ends)


def _check_ends(
    model: Any, config: Any, group: TensorGroup, named: Mapping[str, nn.Module], styles: Mapping[str, str]
) -> None:
    """Raise UserError where embedding or head are not divided by tokens, or where dropout would be drawn wrongly."""
    if not styles:
        raise _refused(config, group, "transformers brings no plan for it (base_model_tp_plan)")
    wanted = (("embedding", {_TABLE}, nn.Embedding), ("head", {"colwise", *_GATHERS}, nn.Linear))
    for name, (what, possible, kind) in zip(_ends(model, named), wanted, strict=True):
        if not isinstance(named[name], kind) or styles.get(name) not in possible:
            raise _refused(config, group, f"transformers' plan does not say how its {what} is divided by tokens")
    text = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):
        raise _refused(config, group, "its blocks have sizes of their own each (per_layer_config)")
    for name in _DROPOUTS:
        if getattr(text, name, 0):
            raise _refused(
                config,
                group,
                f"{name} {getattr(text, name)} would drop the same of each rank's part, and not of the whole; set it to"
                " 0 in config.json",
            )


def _slice(
    config: Any, name: str, parameter: torch.Tensor, plan: Mapping[str, str], styles: Mapping[str, str]
) -> Slice | None:
    """Return how a parameter is divided; None where it is not."""
    owner, _, slot = name.rpartition(".")
    own = plan.get(pattern_of(name))
    if own is not None:
        if own not in _OF_PARAMETERS or parameter.ndim < 2:  # noqa: PLR2004 # a matrix, or several
            raise _unknown(config, name, own)
        return Slice(parameter.ndim - 1) if own == "rowwise" else Slice(parameter.ndim - 2, _blocks(own))
    style = styles.get(owner)
    if style in _COLUMNS:
        return Slice(0, _blocks(style))
    if style in _ROWS:
        return Slice(1) if slot == "weight" else None
    if style == _TABLE:
        return Slice(0)
    if style is None or style in _WHOLE:
        return None
    raise _unknown(config, owner, style)


def _blocks(style: str | None) -> int:
    return 2 if style == "packed_colwise" else 1


def _check_experts(
    config: Any, named: Mapping[str, Any], styles: Mapping[str, str], slices: Mapping[str, Slice]
) -> None:
    """Raise UserError where a style stands at a module that it cannot divide."""
    for name, style in styles.items():
        module = named[name]
        if style in _COLUMNS | _ROWS and type(module) is not nn.Linear:
            raise _unknown(config, f"{name}, a {type(module).__name__},", style)
        if style != _EXPERTS:
            continue
        for slot, _ in module.named_parameters():
            if f"{name}.{slot}" not in slices:
                raise _unknown(config, f"{name}, whose {slot} it leaves whole,", style)
        if getattr(module, "is_transposed", False):
            raise _unknown(config, f"{name}, whose matrices are transposed,", style)


def _check_sizes(config: Any, group: TensorGroup, styles: Mapping[str, str], slices: Mapping[str, Slice]) -> None:
    """Raise UserError for what ranks cannot share equally, with the numbers of ranks that can."""
    text, counts = config.get_text_config(), dict[str, int]()
    if any(style == "colwise" and "attn" in name.rpartition(".")[0] for name, style in styles.items()):
        counts = {what: value for name, what in _COUNTS.items() if isinstance(value := getattr(text, name, None), int)}
    for name, cut in slices.items():
        counts.setdefault(f"columns of {pattern_of(name)}", cut.shape[cut.dim] // cut.blocks)
    if all(count % group.size == 0 for count in counts.values()):
        return
    common = math.gcd(*counts.values())
    what, count = next((what, count) for what, count in counts.items() if count % group.size)
    possible = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
    raise UserError(
        "NotDivided",
        f"{FIELD}: {group.size} ranks cannot share {count} {what} equally; a {config.model_type} of these sizes can be"
        f" shared by {possible}",
    )


def _unknown(config: Any, name: str, style: str) -> UserError:
    return UserError(
        "NotDivided",
        f"{FIELD}: transformers' plan for a {config.model_type} divides {name} as {style}, which is not known here; use"
        " tensor: 1, and more pipeline stages or replicas",
    )


def _refused(config: Any, group: TensorGroup, reason: str) -> UserError:
    return UserError(
        "NotDivided",
        f"{FIELD}: {group.size} ranks cannot share a {config.model_type}: {reason}; use tensor: 1, and more pipeline"
        " stages or replicas",
    )
