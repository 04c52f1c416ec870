"""Adapters of low rank beside a model's own weights, which stay as they are (`spec.training.lora`).

A linear layer that a target names keeps its place, its name and its weight; it gets two parameters
more, `lora_A` (rank, inputs) and `lora_B` (outputs, rank), and returns

    W x + b + s B A dropout(x)        s = alpha / rank

(Hu et al. 2021, arXiv 2106.09685; the definition, and the initial values, are PEFT's). All other
parameters of the model are frozen: they need no gradient, no optimiser state, and no checkpoint,
for they come from where they came from before: the seed, a user's function, a folder.
"""

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from pipelinejob.spec.lora import ALL_MATRICES, Lora, matches
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.models.identity import global_name, places

_FIELD = "spec.training.lora.targets"
_MARK = "_is_frozen_by_lora"  # of a parameter: a user's function may give the same modules twice
_DIGEST_BYTES = 32
_SHORT_BYTES = 2
_STACKED = 3  # dimensions of many matrices in one tensor


class Adapted(nn.Module):
    """A linear layer with an adapter: mixed into the class of a module that was made without one."""

    weight: nn.Parameter
    lora_A: nn.Parameter  # noqa: N815 # as PEFT and the paper name them
    lora_B: nn.Parameter  # noqa: N815 # as above
    lora_scale: float
    lora_dropout: float

    def forward(self, given: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        """Return what the layer returns, and what the adapter adds."""
        own: torch.Tensor = super().forward(given, *args, **more)  # of the class it is mixed into
        thinned = functional.dropout(given, self.lora_dropout, self.training) if self.lora_dropout else given
        return own + functional.linear(functional.linear(thinned, self.lora_A), self.lora_B) * self.lora_scale

    @torch.no_grad()
    def merged(self) -> torch.Tensor:
        """Return a weight that does alone what weight and adapter do, fp32 or wider, of the weight's shape."""
        added = (self.lora_B @ self.lora_A) * self.lora_scale
        return self.weight + (added.T if is_transposed(self) else added)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What was adapted of some layers.

    `base` are the names of the frozen parameters; `found` counts the linear layers that each
    target names; `linear` are the ends of the names of all linear layers that targets could name.
    `stacked` are those of `base` that hold many matrices in one tensor, as experts of transformers
    do: no adapter can stand beside them.
    """

    base: frozenset[str] = frozenset()
    stacked: frozenset[str] = frozenset()
    found: Mapping[str, int] = field(default_factory=dict)
    linear: frozenset[str] = frozenset()


def adapt(
    layers: Iterable[tuple[int, nn.Module]],
    lora: Lora,
    *,
    seed: int,
    tied: Mapping[str, str],
    head: int | None,
) -> Adapters:
    """Give adapters to the linear layers that targets name; freeze everything else.

    `tied` maps names of the whole model's tied tensors and modules to the names that they share;
    `head` is the layer that gives logits, if there is one that gives nothing else. Initial values
    depend on seed and name alone. Raises UserError for a target that cannot be adapted.
    """
    base, stacked = set[str](), set[str]()
    found = dict.fromkeys(lora.targets, 0)
    ends: set[str] = set()
    shared = tied.keys() | set(tied.values())
    for index, layer in layers:
        for place in places(index, layer):
            if isinstance(place.tensor, nn.Parameter) and not place.slot.startswith("lora_") and _froze(place.tensor):
                base.add(place.name_by(tied))
                if place.tensor.ndim == _STACKED and not isinstance(place.module, _ConvNd):
                    stacked.add(place.name_by(tied))
        for name, module in _named_modules(index, layer):
            is_linear, is_head = _is_linear(module), index == head
            wanted = [each for each in lora.targets if matches(each, name)]
            if is_linear and not is_head:
                ends.add(name.rpartition(".")[2] if name.count(".") > 1 else name)
            if ALL_MATRICES in wanted and (not is_linear or is_head or _shares(name, shared)):
                wanted.remove(ALL_MATRICES)
            if not wanted:
                continue
            _refuse(wanted[0], name, module, is_head=is_head, is_shared=_shares(name, shared))
            if is_linear:
                _wrap(index, name, cast("nn.Linear", module), lora, seed)
                found.update((each, found[each] + 1) for each in wanted)
    return Adapters(base=frozenset(base), stacked=frozenset(stacked), found=found, linear=frozenset(ends))


def adapted_modules(index: int, layer: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Return a layer's adapted modules by their global names."""
    return ((name, module) for name, module in _named_modules(index, layer) if isinstance(module, Adapted))


def is_transposed(module: nn.Module) -> bool:
    """Return whether a weight is (inputs, outputs), as transformers' Conv1D has it."""
    kinds = type(module).__mro__
    return any(each.__name__ == "Conv1D" and each.__module__.startswith("transformers.") for each in kinds)


def hold_short(layers: Iterable[tuple[int, nn.Module]], tied: Iterable[str]) -> None:
    """Hold frozen matrices in bf16, as autocast multiplies with them: bit for bit the same, in half the memory.

    In fp32 each pass would cast them anew and keep its copy. `tied` names what stands in several
    places, which may look up rows in fp32.
    """
    shared = set(tied)
    for index, layer in layers:
        for name, module in _named_modules(index, layer):
            if _is_plain(module) and not _shares(name, shared):
                for parameter in module.parameters(recurse=False):
                    if hasattr(parameter, _MARK) and parameter.dtype == torch.float32:
                        parameter.data = parameter.data.bfloat16()


@contextmanager
def stirred(layers: Iterable[tuple[int, nn.Module]], seed: int) -> Iterator[None]:
    """Give every B small random values inside, and its own again afterwards.

    As long as B is 0, A has no gradient that could be looked at.
    """
    modules = [each for index, layer in layers for each in adapted_modules(index, layer)]
    before = [module.lora_B.detach().clone() for _, module in modules]
    for name, module in modules:
        dice = _dice(seed, f"{name}.lora_B")
        module.lora_B.data.copy_(torch.randn(module.lora_B.shape, generator=dice) * 0.02)
    try:
        yield
    finally:
        for (_, module), values in zip(modules, before, strict=True):
            module.lora_B.data.copy_(values)


def digest_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> bytes:
    """Return what identifies named tensors, in any order and division: `combined` puts divisions together.

    Values count as bf16 has them, so that a model is itself in either precision.
    """
    return combined(_digest(name, tensor) for name, tensor in tensors)


def combined(digests: Iterable[bytes]) -> bytes:
    """Return the digest of all that several digests are of; none of it may be in two."""
    total = 0
    for each in digests:
        total ^= int.from_bytes(each, "big")
    return total.to_bytes(_DIGEST_BYTES, "big")


def check_found(found: Mapping[str, int], linear: Iterable[str]) -> None:
    """Refuse targets that name nothing; `found` counts over the whole model. Raises UserError."""
    for pattern, count in found.items():
        if not count:
            known = ", ".join(sorted(linear)) or "none"
            raise UserError(
                "NoSuchTarget",
                f"{_FIELD}: {pattern!r} names no linear layer of the model, on no stage; the linear layers here end in:"
                f" {known}; name one of them, or write {ALL_MATRICES} for all",
            )


def _froze(parameter: nn.Parameter) -> bool:
    """Freeze a parameter; return whether that is our doing, now or when it was made."""
    if parameter.requires_grad:
        parameter.requires_grad_(False)  # torch takes it by place
        parameter.grad = None
        setattr(parameter, _MARK, True)
    return hasattr(parameter, _MARK)


def _wrap(index: int, name: str, module: nn.Linear, lora: Lora, seed: int) -> None:
    if isinstance(module, Adapted):
        return
    rows, columns = module.weight.shape
    outputs, inputs = (columns, rows) if is_transposed(module) else (rows, columns)
    weight = module.weight
    options: dict[str, Any] = {
        "dtype": torch.float32 if weight.itemsize <= _SHORT_BYTES else weight.dtype,
        "device": "cpu" if weight.is_meta else weight.device,
    }
    first = torch.empty(lora.rank, inputs)
    nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=_dice(mix(seed, index), f"{name}.lora_A"))
    made = cast("Adapted", module)
    made.lora_A = nn.Parameter(first.to(**options))
    made.lora_B = nn.Parameter(torch.zeros(outputs, lora.rank, **options))
    made.lora_scale, made.lora_dropout = lora.scale, lora.dropout
    made.__class__ = type(f"Adapted{type(module).__name__}", (Adapted, type(module)), {})


def _refuse(pattern: str, name: str, module: nn.Module, *, is_head: bool, is_shared: bool) -> None:
    """Refuse a module that a pattern names and that cannot have an adapter. Raises UserError."""
    instead = f"name the matrices of the blocks, or write {ALL_MATRICES} for all of them"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        why = f"is an embedding, which looks up rows and multiplies with no matrix, so it has no adapter; {instead}"
    elif not _is_linear(module):
        return
    elif is_head:
        why = (
            "is the head: its adapter would be as wide as the vocabulary, and a table that it shares with the embedding"
            f" could no longer be shared; {instead}"
        )
    elif is_shared:
        why = "shares its weight with another layer, which would not have its adapter; name others, or give it its own"
    elif isinstance(module, NonDynamicallyQuantizableLinear):
        why = (
            "belongs to torch.nn.MultiheadAttention, which multiplies with its weight without calling it, so that an"
            " adapter would do nothing; name other layers, or write attention with nn.Linear"
        )
    elif "weight" not in module._parameters:  # noqa: SLF001 # as `places` reads it
        why = "has a weight that is made of others at each call (parametrize); name others, or remove it"
    elif not cast("nn.Linear", module).weight.is_floating_point():
        why = f"has a weight of {cast('nn.Linear', module).weight.dtype}, not of a real float type; name others"
    else:
        return
    raise UserError("BadTarget", f"{_FIELD}: {pattern!r} names {name}, which {why}")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def _is_plain(module: nn.Module) -> bool:
    """Return whether a linear layer multiplies just as torch's or transformers' own does."""
    kind = type(module).__mro__[2] if isinstance(module, Adapted) else type(module)
    return kind is nn.Linear or (kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."))


def _shares(name: str, shared: Iterable[str]) -> bool:
    return name in shared or f"{name}.weight" in shared


def _named_modules(index: int, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((global_name(index, path).rstrip("."), module) for path, module in layer.named_modules())


def _dice(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(mix(seed, zlib.crc32(name.encode())))


def _digest(name: str, tensor: torch.Tensor) -> bytes:
    short = tensor.detach().to(torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
    found = hashlib.sha256(f"{name} {tuple(tensor.shape)}".encode())
    found.update(short.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return found.digest()
