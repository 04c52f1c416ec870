"""Tensor groups without processes: of one rank alone, whose exchanges are counted, and of threads that meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import distributed

from pipelinejob.spec.job import Data, Model
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.losses.divided_loss import divided
from pipelinejob_trainer.models.losses.loss import token_cross_entropy
from pipelinejob_trainer.models.part import Part, build_part, num_layers, walk_of
from support.local.processes import HANG_S


class Unmet(TensorGroup):
    """A group whose other ranks are not there: what it would exchange is counted; they have what it has, or nothing."""

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes_exchanged += (self.size - 1) * tensor.nbytes
        return torch.stack([tensor] * self.size)

    def scattered(self, tensors: torch.Tensor) -> torch.Tensor:
        self.bytes_exchanged += (self.size - 1) * tensors[0].nbytes
        return tensors[self.rank].clone()

    def _reduce(self, tensor: torch.Tensor, operation: object) -> None:
        del operation
        self.bytes_exchanged += 2 * (self.size - 1) * tensor.nbytes // self.size


class Table:
    """Where the ranks of a group lay their tensors."""

    def __init__(self, size: int) -> None:
        self._tensors: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=HANG_S)

    def exchanged(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        """Lay a tensor down; return those of all, once all have."""
        self._tensors[rank] = tensor.detach().clone()
        self.barrier.wait()
        found = torch.stack(self._tensors)
        self.barrier.wait()
        return found


class Threaded(TensorGroup):
    """A rank of a group of threads of this process."""

    def __init__(self, rank: int, table: Table, **given: bool) -> None:
        super().__init__(rank, table.barrier.parties, **given)
        self.table = table

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.table.exchanged(self.rank, tensor)

    def scattered(self, tensors: torch.Tensor) -> torch.Tensor:
        return self.table.exchanged(self.rank, tensors)[:, self.rank].sum(0)

    def _reduce(self, tensor: torch.Tensor, operation: object) -> None:
        of_all = self.table.exchanged(self.rank, tensor)
        tensor.copy_(of_all.amax(0) if operation == distributed.ReduceOp.MAX else of_all.sum(0))


def gradients_differ(model: Model, data: Data, size: int, *, vocabulary: int) -> tuple[float, str]:
    """Return by how much of its largest entry a gradient of a folder's narrow model differs where threads share it."""
    table = Table(size)
    groups = [Threaded(rank, table) for rank in range(size)]
    build = _builder(model, data, size)
    whole, parts = build(ALONE), [build(group) for group in groups]
    dice = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(vocabulary, (2, 2, data.sequence_length), generator=dice)
    _stir(whole, parts, dice)
    _pass(whole, tokens, targets)
    with ThreadPoolExecutor(size) as pool:
        for done in [pool.submit(_pass, part, tokens, targets) for part in parts]:
            done.result()
    expected = {name: each.grad for name, each in whole.named_parameters().items() if each.grad is not None}
    if not all(bool(each.isfinite().all()) for each in expected.values()):
        raise ValueError("its narrow copy's gradients are not finite")
    least = 1e-3 * max(float(each.abs().max()) for each in expected.values())
    worst = (0.0, "")
    for part in parts:
        for name, each in part.named_parameters().items():
            if name not in expected:
                assert each.grad is None, name
                continue
            own = part.slices[name].of(expected[name], part.tensor_group) if name in part.slices else expected[name]
            assert each.grad is not None, name
            error = float((each.grad - own).abs().max()) / max(float(expected[name].abs().max()), least)
            worst = max(worst, (error, name))
    return worst


@torch.no_grad()
def _stir(whole: Part, parts: Sequence[Part], dice: torch.Generator) -> None:
    """Move what may begin as zeros or ones, so that it counts; all ranks alike."""
    for name, each in whole.named_parameters().items():
        each.add_(torch.randn(each.shape, generator=dice), alpha=0.05)
        for part in parts:
            own = part.slices[name].of(each, part.tensor_group) if name in part.slices else each
            part.named_parameters()[name].copy_(own)


def _builder(model: Model, data: Data, size: int) -> Callable[[TensorGroup], Part]:
    def build(group: TensorGroup) -> Part:
        stretches = [(0, num_layers(model))]
        return build_part(model, data, stretches=stretches, seed=1, narrow=size, tensor_group=group)

    return build


def _pass(part: Part, tokens: torch.Tensor, targets: torch.Tensor) -> None:
    group = part.tensor_group
    try:
        logits = walk_of(part.chunks[0])(tokens, _directly)
        loss = divided(token_cross_entropy, group, part.vocabulary or 0)(logits, targets)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
    except BaseException:
        if isinstance(group, Threaded):
            group.table.barrier.abort()
        raise


def _directly(index: int, layer: Any, given: Any, call: Any = None) -> Any:
    del index
    return (call or layer)(given)
