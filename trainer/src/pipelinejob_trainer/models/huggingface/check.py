"""Whether a model may be cut: a small copy of it run whole, against the same cut after every layer.

The copy has the model's own kinds of layers with few hidden units (`shrink.py`). Logits and all
gradients must be bit-equal. It takes about a second, and every rank does it by itself, before
anything of the model has values: ranks need what it finds out (`anatomy.py`).
"""

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelinejob_trainer.base.errors import LayerError, UserError
from pipelinejob_trainer.base.nesting import flatten, unflatten
from pipelinejob_trainer.base.user_code import error_text
from pipelinejob_trainer.models.huggingface.anatomy import Anatomy, anatomy_of
from pipelinejob_trainer.models.huggingface.balance import FLAG, balance_of
from pipelinejob_trainer.models.huggingface.chunk import Runner
from pipelinejob_trainer.models.huggingface.cut import cut, materialise
from pipelinejob_trainer.models.huggingface.find import num_blocks, refuse_encoder_decoder, refused, skeleton
from pipelinejob_trainer.models.huggingface.shrink import VOCABULARY, Sizes, kinds_of, shrunk
from pipelinejob_trainer.models.identity import places
from pipelinejob_trainer.models.losses.auxiliary_loss import Gathering

_ROWS = 2
_DOCUMENTS = (5, 7)  # lengths of the documents in a row, where it has several
_LENGTH = sum(_DOCUMENTS)
_PERTURBED = 0.05  # by which weights that start as zeros or ones are moved, so that they count
_MOST_PARAMETERS = 20_000_000
_ALONE = 1e-4  # of the largest logit: a document in a row against the same alone is summed in another order
_UNSEEN = 1e-6  # of the largest logit: what other tokens may change that are not seen, for routers mix rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found out of a model.

    `keeps_documents_apart` is whether tokens of a row see their own document only, where positions
    begin anew with each. `sentence` says what was checked, `sizes` are those of the small copy.
    """

    anatomy: Anatomy
    sizes: Sizes
    keeps_documents_apart: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A small whole model, its batch, and what one pass through it gave."""

    config: Any
    sizes: Sizes
    model: nn.Module
    anatomy: Anatomy
    tokens: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor
    balance: torch.Tensor  # what it adds to the loss for its experts' balance
    gradients: Mapping[str, torch.Tensor | None]


def check(config: Any, *, trust_remote_code: bool = False) -> Checked:
    """Check the cut of a model of this config.

    Raises UserError with the reason where it cannot be cut, or where the cut would not be the same
    model.
    """
    found, _ = check_with(config, trust_remote_code=trust_remote_code)
    return found


def check_with(config: Any, *, trust_remote_code: bool = False) -> tuple[Checked, Whole]:
    """Check a cut as `check` does; return the small whole model too."""
    begun = time.perf_counter()
    refuse_known(config)
    whole = small_whole(config, trust_remote_code=trust_remote_code)
    _check_causal(whole)
    layers = num_blocks(whole.config) + 2
    try:
        difference = compare(whole, range(layers + 1), trust_remote_code=trust_remote_code)
    except LayerError as error:
        raise refused(config, f"cut after every layer, a small copy of it fails: {error}") from error
    if difference:
        raise refused(config, f"cut after every layer, a small copy of it differs from the whole one in {difference}")
    kinds, shown = (set(kinds_of(each, trust_remote_code=trust_remote_code)) for each in (config, whole.config))
    unseen = (
        f", but {len(kinds - shown)} of its {len(kinds)} kinds of blocks are not among them" if kinds - shown else ""
    )
    found = Checked(
        anatomy=whole.anatomy,
        sizes=whole.sizes,
        keeps_documents_apart=_keeps_documents_apart(whole),
        sentence=f"checked: a {config.model_type} of {layers - 2} small blocks, cut after each, gives the whole one's"
        f" logits and gradients bit for bit{unseen} ({time.perf_counter() - begun:.1f} s)",
    )
    return found, whole


def refuse_known(config: Any) -> None:
    """Raise UserError for what a config asks for that a cut cannot give."""
    refuse_encoder_decoder(config)
    text = config.get_text_config()
    for name in ("layerdrop", "decoder_layerdrop", "layer_dropout"):
        if getattr(text, name, 0):
            raise refused(config, f"{name} {getattr(text, name)} skips layers at random; set it to 0")


def small_whole(config: Any, *, trust_remote_code: bool = False) -> Whole:
    """Make a small copy of a model and run it once, forward and backward.

    Raises UserError where none can be made.
    """
    failures: list[str] = []
    for sizes, small in shrunk(config, trust_remote_code=trust_remote_code):
        try:
            _check_size(skeleton(small, trust_remote_code=trust_remote_code))
            with _seeded():
                model = skeleton(small, trust_remote_code=trust_remote_code, device="cpu")
                _perturb(model)
                model.train()
                return _ran(small, sizes, model)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 # sizes that this family does not allow show in any way
            failures.append(error_text(error))
    raise UserError(
        "NotChecked",
        f"spec.model.huggingFace: no small copy of a {config.model_type} could be run, so that its cut cannot be"
        f" checked against the whole model: {'; '.join(dict.fromkeys(failures))[:600]}",
    )


def _check_size(model: nn.Module) -> None:
    count = sum(each.numel() for each in model.parameters())
    if count > _MOST_PARAMETERS:
        raise ValueError(f"made small it still has {count:,} parameters")


def compare(whole: Whole, cuts: Sequence[int], *, trust_remote_code: bool = False) -> str:
    """Run a small model cut at these layers; return what differs from the whole one, or nothing."""
    stages = []
    values = dict(whole.model.named_parameters(remove_duplicate=False)) | dict(
        whole.model.named_buffers(remove_duplicate=False)
    )
    for first, end in pairwise(cuts):
        stage = cut(whole.config, range(first, end), whole.anatomy, trust_remote_code=trust_remote_code)
        for index in range(first, end):
            _copy(materialise(stage, index), index, stage.names.full, values)
        stages.append((range(first, end), Runner(stage, takes_documents=True)))
    sent: list[tuple[torch.Tensor, ...]] = []
    received: list[tuple[torch.Tensor, ...]] = []
    output: Any = whole.tokens
    with Gathering() as terms:
        for layers, runner in stages:
            structure, leaves = flatten(output)
            received.append(tuple(_as_received(leaf, is_alone=len(leaves) == 1) for leaf in leaves))
            with _seeded():
                output = runner.walk(layers, unflatten(structure, received[-1]), _directly)
            sent.append(flatten(output)[1])
    if not torch.equal(output, whole.logits):
        return f"its logits, by {_distance(output, whole.logits):.1e} of the largest"
    extra = sum(terms, start=torch.zeros(()))
    if not torch.equal(extra.detach(), whole.balance):
        return f"its balancing loss, which is {float(extra):.6g} and not {float(whole.balance):.6g}"
    torch.autograd.backward([_loss(output, whole.targets) + extra if terms else _loss(output, whole.targets)])
    for before, after in reversed(list(pairwise(range(len(stages))))):
        pairs = zip(sent[before], (leaf.grad for leaf in received[after]), strict=True)
        rooted = [(leaf, gradient) for leaf, gradient in pairs if leaf.requires_grad and gradient is not None]
        if rooted:
            torch.autograd.backward([leaf for leaf, _ in rooted], [gradient for _, gradient in rooted])
    return _different_gradient(whole, stages)


def _as_received(leaf: torch.Tensor, *, is_alone: bool) -> torch.Tensor:
    """Return a tensor as the next stage gets it."""
    given = leaf.detach()
    has_gradient = leaf.requires_grad or (is_alone and leaf.is_floating_point())
    return given.requires_grad_() if has_gradient else given


def _different_gradient(whole: Whole, stages: Sequence[tuple[range, Runner]]) -> str:
    """Return the parameter whose gradient differs; those of tied places are added, last ones first."""
    found: dict[str, torch.Tensor | None] = {}
    seen: set[int] = set()
    first_names = {id(each): name for name, each in whole.model.named_parameters()}
    for layers, runner in reversed(stages):
        for index in reversed(layers):
            for place in places(index, runner.cut.layers[index]):
                if place.is_buffer or place.tensor is None or id(place.tensor) in seen:
                    continue
                seen.add(id(place.tensor))
                name = first_names[id(whole.model.get_parameter(runner.cut.names.full(place.name)))]
                gradient, before = place.tensor.grad, found.get(name)
                found[name] = gradient if before is None else before if gradient is None else before + gradient
    for name, expected in whole.gradients.items():
        gradient = found.get(name)
        if name not in found:
            return f"{name}, which no stage holds"
        if (gradient is None) != (expected is None):
            return f"the gradient of {name}, which only one of them has"
        if gradient is not None and expected is not None and not torch.equal(gradient, expected):
            return f"the gradient of {name}, by {_distance(gradient, expected):.1e} of its largest entry"
    return ""


def _ran(config: Any, sizes: Sizes, model: nn.Module) -> Whole:
    tokens = torch.randint(min(VOCABULARY, config.get_text_config().vocab_size), (_ROWS, _LENGTH + 1))
    inputs, targets = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    balance = balance_of(config, model)
    found: list[Any] = []

    def run() -> None:
        with _seeded():
            found.append(_whole_output(model, inputs, **({FLAG: True} if balance else {})))

    anatomy = anatomy_of(model, config, run, counts_positions=_counts_positions(model, inputs))
    (output,) = found
    logits = _logits(output)
    if not bool(logits.isfinite().all()):
        raise ValueError("its logits are not finite")
    extra = torch.zeros(())
    if balance:
        if not isinstance(output.aux_loss, torch.Tensor):
            raise refused(config, f"it is asked for {FLAG}, and gives no loss of them")
        extra = balance.coefficient * output.aux_loss
        _check_coefficient(config, model, inputs, extra)
    torch.autograd.backward([_loss(logits, targets) + extra])
    return Whole(
        config=config,
        sizes=sizes,
        model=model,
        anatomy=anatomy,
        tokens=inputs,
        targets=targets,
        logits=logits.detach(),
        balance=extra.detach(),
        gradients={name: each.grad for name, each in model.named_parameters()},
    )


def whole_logits(model: nn.Module, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Return what a whole model of transformers gives, called as anyone calls it."""
    return _logits(_whole_output(model, tokens, **({} if positions is None else {"position_ids": positions})))


def _whole_output(model: nn.Module, tokens: torch.Tensor, **given: Any) -> Any:
    return model(input_ids=tokens, **given)


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


@torch.no_grad()
def _check_coefficient(config: Any, model: nn.Module, tokens: torch.Tensor, extra: torch.Tensor) -> None:
    """Raise UserError where the model adds something else to its loss than what we take it to add."""
    with_it, without = (_whole_output(model, tokens, labels=tokens, **{FLAG: each}).loss for each in (True, False))
    added = float(with_it - without)
    if abs(added - float(extra)) > _ALONE * float(with_it):
        raise refused(config, f"{FLAG} adds {added:.6g} to a loss, and not the {float(extra):.6g} of its config")


@torch.no_grad()
def _counts_positions(model: nn.Module, tokens: torch.Tensor) -> bool:
    """Return whether a model told that tokens stand where they do in the row does what it does untold."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    with _seeded():
        untold = whole_logits(model, tokens)
    with _seeded():
        told = whole_logits(model, tokens, torch.arange(tokens.shape[1]).expand(tokens.shape))
    return torch.equal(untold, told)


@torch.no_grad()
def _check_causal(whole: Whole) -> None:
    """Raise UserError where a token's logits depend on the tokens after it."""
    with _seeded():
        logits = whole_logits(whole.model, _changed(whole, slice(_LENGTH - 1, None)))
    if _distance(logits[:, :-1], whole.logits[:, :-1]) > _UNSEEN:
        raise refused(
            whole.config,
            "its logits depend on tokens that come later, so that it would learn to look at what it has to foretell"
            f" (its config has is_decoder {getattr(whole.config, 'is_decoder', None)})",
        )


@torch.no_grad()
def _keeps_documents_apart(whole: Whole) -> bool:
    """Return whether documents in one row give what each gives by itself, and do not see each other."""
    first, second = _DOCUMENTS
    if not whole.anatomy.counts_positions:
        return False
    positions = torch.cat([torch.arange(first), torch.arange(second)]).expand(_ROWS, -1)
    together = whole_logits(whole.model, whole.tokens, positions)
    beside_another = whole_logits(whole.model, _changed(whole, slice(first)), positions)
    apart = [whole_logits(whole.model, part) for part in torch.split(whole.tokens, list(_DOCUMENTS), dim=1)]
    is_unseen = _distance(beside_another[:, first:], together[:, first:]) <= _UNSEEN
    return is_unseen and _distance(together, torch.cat(apart, dim=1)) <= _ALONE


def _changed(whole: Whole, columns: slice) -> torch.Tensor:
    """Return other tokens, which differ in these columns."""
    tokens = whole.tokens.clone()
    tokens[:, columns] = (tokens[:, columns] + 1) % min(VOCABULARY, whole.config.get_text_config().vocab_size)
    return tokens


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float(((one - other).abs().max() / other.abs().max().clamp_min(1e-30)).detach())


@torch.no_grad()
def _perturb(model: nn.Module) -> None:
    for each in model.parameters():
        if each.is_floating_point():
            each.add_(torch.randn_like(each), alpha=_PERTURBED)


@torch.no_grad()
def _copy(layer: nn.Module, index: int, full: Any, values: Mapping[str, torch.Tensor]) -> None:
    made: dict[int, nn.Parameter] = {}
    for place in places(index, layer):
        tensor = place.tensor
        if tensor is None:
            continue
        value = values[full(place.name)]
        if place.is_buffer:
            if place.is_kept:
                place.put(value.clone())
        elif id(value) not in made:
            made[id(value)] = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        if not place.is_buffer:
            place.put(made[id(value)])


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        yield


def _directly(index: int, layer: nn.Module, given: Any, call: Any = None) -> Any:  # noqa: ARG001 # what a walk calls
    return (call or layer)(given)
