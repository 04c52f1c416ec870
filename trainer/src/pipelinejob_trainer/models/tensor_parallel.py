"""Tensor parallelism: several ranks share each layer's matrices.

As in Megatron (Shoeybi et al. 2019, arXiv 1909.08053). The first matrices of a branch are divided
by columns, so that a rank has some heads, or some of the inner width, and all that belongs to
them; the last by rows, so that what the ranks get adds up. A branch is `entered` before the first
and `left` behind the last: the one adds gradients up over the group, the other outputs. Tables of
tokens are divided by tokens. What is not divided is equal on all ranks, and so are its gradients,
bit for bit, for they come of sums that all ranks have alike.

All ranks hold the whole residual stream; or, with sequence parallelism (Korthikanti et al. 2022, arXiv
2205.05198, section 4.2.2), each that of its tokens: a branch begins by gathering them, and where it
ends each rank gets its tokens' sums. Gradients go the same ways backwards, so that as many bytes travel.
Whatever works on the stream's tokens, norms and biases, then has a rank's share of its gradient
alone, and adds them up.

Parameters stay plain ones, of a part's shape, so that a backward pass in halves, optimisers and
reductions need to know nothing: why not DTensor is in docs/decisions/0012-tensor-parallelism.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.communication.layer_group import LayerGroup
from pipelinejob_trainer.communication.tensor_group import TensorGroup


@dataclass(frozen=True, slots=True)
class Slice:
    """How a tensor is divided: along `dim`, each of `blocks` equal stretches of it by itself.

    Queries, keys and values in one matrix are three blocks. `shape` is the whole tensor's, once it
    is known.
    """

    dim: int
    blocks: int = 1
    shape: tuple[int, ...] = ()

    def of(self, whole: torch.Tensor, group: LayerGroup) -> torch.Tensor:
        """Return a rank's part of a whole tensor; a copy, contiguous."""
        return self._view(whole, group).reshape(self.part_shape(group, whole.shape)).clone()

    def put(self, part: torch.Tensor, whole: torch.Tensor, group: LayerGroup) -> None:
        """Put a rank's part where it belongs in a whole tensor."""
        view = self._view(whole, group)
        view.copy_(part.view(view.shape))

    def runs(self, group: LayerGroup, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Return where a rank's part lies in a whole tensor of this shape: first elements, and how many from there."""
        extent = shape[self.dim] // self.blocks
        first, end = group.bounds(extent)
        after = math.prod(shape[self.dim + 1 :])
        for block in range(math.prod(shape[: self.dim]) * self.blocks):
            yield (block * extent + first) * after, (end - first) * after

    def part_shape(self, group: LayerGroup, shape: Sequence[int] | None = None) -> tuple[int, ...]:
        """Return the shape of a rank's part of a whole tensor of this shape."""
        whole = self.shape if shape is None else tuple(shape)
        first, end = group.bounds(whole[self.dim] // self.blocks)
        return (*whole[: self.dim], self.blocks * (end - first), *whole[self.dim + 1 :])

    def _view(self, whole: torch.Tensor, group: LayerGroup) -> torch.Tensor:
        before, extent, after = whole.shape[: self.dim], whole.shape[self.dim], whole.shape[self.dim + 1 :]
        first, end = group.bounds(extent // self.blocks)
        return whole.view(*before, self.blocks, extent // self.blocks, *after).narrow(self.dim + 1, first, end - first)


def share(layer: nn.Module, group: TensorGroup) -> None:
    """Let a layer's modules know the group; their parameters are cut by who holds them."""
    for module in layer.modules():
        if hasattr(module, "tensor_group"):
            setattr(module, "tensor_group", group)  # noqa: B010 # to a type checker modules have tensors alone


def entered(x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Return the stream, (rows, tokens, width), for matrices divided by columns.

    Gradients that come back are added up over the group.
    """
    if not group.is_split:
        return x
    result: torch.Tensor = (_Assembled if group.divides_tokens else _Entered).apply(x, group)
    return result


def entered_beside(x: torch.Tensor, group: TensorGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `entered` does, and the same for what all ranks do alike, with equal gradients."""
    if not group.divides_tokens:
        return entered(x, group), x
    inside, beside = _AssembledTwice.apply(x, group)
    return inside, beside


def with_all_gradients(x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Return what all ranks have alike, of whose gradient each will give a share."""
    if not group.is_split:
        return x
    result: torch.Tensor = _Entered.apply(x, group)
    return result


def on_stream(parameter: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Return a parameter for work on the stream, of which a rank may have some tokens alone."""
    return with_all_gradients(parameter, group) if group.divides_tokens else parameter


def left(x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Return the sum over the group of what its ranks have, (rows, tokens, width); x is used up."""
    if not group.is_split:
        return x
    result: torch.Tensor = (_Scattered if group.divides_tokens else _Left).apply(x, group)
    return result


def closing(linear: nn.Linear, x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Multiply with a branch's last matrix, divided by rows; the bias, which is not, is added once."""
    if not group.is_split:
        result: torch.Tensor = linear(x)
        return result
    total = left(functional.linear(x, linear.weight), group)
    return total if linear.bias is None else total + on_stream(linear.bias, group).to(total.dtype)


def looked_up(table: nn.Embedding, tokens: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Look tokens up in a table of which each rank has some rows; those of others are zeros here."""
    if not group.is_split:
        result: torch.Tensor = table(tokens)
        return result
    return looked_up_by(lambda own: functional.embedding(own, table.weight), tokens, group, table.num_embeddings)


def looked_up_by(
    look_up: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor, group: TensorGroup, extent: int
) -> torch.Tensor:
    """Look tokens up by a function of a rank's own rows, numbered from 0; the table has `extent` rows in all."""
    first, end = group.bounds(extent)
    is_elsewhere = (tokens < first) | (tokens >= end)
    found = look_up((tokens - first).masked_fill(is_elsewhere, 0))
    return left(found.masked_fill(is_elsewhere[..., None], 0.0), group)


def gathered(part: torch.Tensor, group: TensorGroup, extent: int) -> torch.Tensor:
    """Return the whole of a last dimension of `extent`, of which each rank has a part; all use it alike."""
    whole: torch.Tensor = _Gathered.apply(part, group, extent)
    return whole


def own_columns(x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Return this rank's part of the last dimension of what all ranks have."""
    part: torch.Tensor = _OwnColumns.apply(x, group)
    return part


@contextmanager
def own_numbers(device: torch.device, group: TensorGroup, use: int = 0) -> Iterator[None]:
    """Draw random numbers of this rank's own inside, for what it has alone; behind it all draw alike again.

    Each `use` in a layer has others.
    """
    if not group.is_split:
        yield
        return
    generator = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    before = generator.get_state()
    generator.manual_seed(mix(generator.initial_seed(), use * group.size + group.rank))
    try:
        yield
    finally:
        generator.set_state(before)


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # others may hold the gradient itself
        ctx.group.add(total)
        return total, None


class _Left(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        if not x.is_contiguous():
            x = x.contiguous()
        else:
            ctx.mark_dirty(x)
        group.add(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        del ctx
        return gradients[0], None


class _Assembled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group = group
        return _all_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _own_sums(gradients[0], ctx.group), None


class _AssembledTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: TensorGroup) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.group = group
        whole = _all_tokens(x, group)
        return whole, whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        of_parts, alike = gradients
        first, end = ctx.group.bounds(alike.shape[1])
        return _own_sums(of_parts, ctx.group) + alike[:, first:end], None


class _Scattered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group = group
        return _own_sums(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_tokens(gradients[0], ctx.group), None


def _all_tokens(x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Return (rows, tokens, width) of all ranks' equal stretches of tokens."""
    return group.gathered(x.contiguous()).transpose(0, 1).flatten(1, 2)


def _own_sums(x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Return the sums over the group of (rows, tokens, width), for this rank's stretch of the tokens."""
    rows, tokens, width = x.shape
    return group.scattered(x.view(rows, group.size, tokens // group.size, width).transpose(0, 1).contiguous())


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: TensorGroup, extent: int) -> torch.Tensor:
        ctx.bounds = group.bounds(extent)
        return _all_columns(part, group, extent)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        first, end = ctx.bounds
        return gradients[0][..., first:end].contiguous(), None, None


class _OwnColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group, ctx.extent = group, x.shape[-1]
        first, end = group.bounds(x.shape[-1])
        return x[..., first:end].contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_columns(gradients[0], ctx.group, ctx.extent), None


def _all_columns(part: torch.Tensor, group: TensorGroup, extent: int) -> torch.Tensor:
    bounds = [group.bounds(extent, rank) for rank in range(group.size)]
    widest = max(end - first for first, end in bounds)
    padded = functional.pad(part, (0, widest - part.shape[-1])).contiguous()
    found = group.gathered(padded)
    return torch.cat([found[rank][..., : end - first] for rank, (first, end) in enumerate(bounds)], dim=-1)


Slices = Mapping[str, Slice]
