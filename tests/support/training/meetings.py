"""Groups that divide layers, without processes: of one rank alone, with its exchanges counted; of threads that meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import distributed

from pipelinejob.spec.job import Data, Model
from pipelinejob_trainer.communication.expert_group import ExpertGroup
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.huggingface.layers import Narrow
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

    def laid(self, rank: int, given: Any) -> list[Any]:
        """Lay something down; return that of all, once all have."""
        self._tensors[rank] = given
        self.barrier.wait()
        found = list(self._tensors)
        self.barrier.wait()
        return found

    def exchanged(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        """Lay a tensor down; return those of all, once all have."""
        return torch.stack(self.laid(rank, tensor.detach().clone()))


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


class ThreadedExperts(ExpertGroup):
    """A replica of a group of threads of this process, which divide experts."""

    def __init__(self, rank: int, table: Table) -> None:
        super().__init__(rank, table.barrier.parties)
        self.table = table

    def announced(self, counts: torch.Tensor) -> torch.Tensor:
        return self.table.exchanged(self.rank, counts).view(self.size, self.size, -1)[:, self.rank]

    def exchanged(self, rows: torch.Tensor, given: Sequence[int], taken: Sequence[int]) -> torch.Tensor:
        found = [each[self.rank] for each in self.table.laid(self.rank, rows.detach().clone().split(list(given)))]
        assert [len(each) for each in found] == list(taken)
        return torch.cat(found)


def gradients_differ(model: Model, data: Data, size: int, *, vocabulary: int) -> tuple[float, str]:
    """Return by how much of its largest entry a gradient of a folder's narrow model differs where threads share it."""
    table = Table(size)
    groups = [Threaded(rank, table) for rank in range(size)]
    build = _builder(model, data, Narrow(size))
    whole, parts = build(), [build(tensor_group=group) for group in groups]
    dice = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(vocabulary, (2, 2, data.sequence_length), generator=dice)
    _stir(whole, parts, dice)
    _pass(whole, tokens, targets)
    with ThreadPoolExecutor(size) as pool:
        for done in [pool.submit(_pass, part, tokens, targets) for part in parts]:
            done.result()
    expected = _gradients(whole)
    return max(_worst(part, _gradients(part), expected) for part in parts)


def gradients_of_experts_differ(model: Model, data: Data, size: int, *, vocabulary: int) -> tuple[float, str]:
    """Return the same of threads that divide its experts, each with a sequence of its own."""
    table = Table(size)
    build = _builder(model, data, Narrow(expert=size))
    whole, parts = build(), [build(expert_group=ThreadedExperts(rank, table)) for rank in range(size)]
    dice = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(vocabulary, (2, size, data.sequence_length), generator=dice)
    _stir(whole, parts, dice)
    _pass(whole, tokens, targets)
    with ThreadPoolExecutor(size) as pool:
        rows = zip(parts, tokens.split(1), targets.split(1), strict=True)
        for done in [pool.submit(_pass, *each) for each in rows]:
            done.result()
    of_parts = [{name: each / size for name, each in _gradients(part).items()} for part in parts]
    names = dict.fromkeys(name for each in of_parts for name in each)
    sums = {
        name: sum(each[name] for each in of_parts if name in each) for name in names if name not in parts[0].portions
    }
    return max(_worst(part, own | sums, _gradients(whole)) for part, own in zip(parts, of_parts, strict=True))


def _gradients(part: Part) -> dict[str, torch.Tensor]:
    return {name: each.grad for name, each in part.named_parameters().items() if each.grad is not None}


def _worst(part: Part, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """Return by how much of its largest entry one of a part's gradients differs, the most, and its name."""
    if not all(bool(each.isfinite().all()) for each in expected.values()):
        raise ValueError("its narrow copy's gradients are not finite")
    assert found.keys() == expected.keys()
    least = 1e-3 * max(float(each.abs().max()) for each in expected.values())
    return max(
        (float((found[name] - part.own(name, each)).abs().max()) / max(float(each.abs().max()), least), name)
        for name, each in expected.items()
    )


@torch.no_grad()
def _stir(whole: Part, parts: Sequence[Part], dice: torch.Generator) -> None:
    """Move what may begin as zeros or ones, so that it counts; all ranks alike."""
    for name, each in whole.named_parameters().items():
        each.add_(torch.randn(each.shape, generator=dice), alpha=0.05)
        for part in parts:
            part.named_parameters()[name].copy_(part.own(name, each))


def _builder(model: Model, data: Data, narrow: Narrow) -> Callable[..., Part]:
    return partial(build_part, model, data, stretches=[(0, num_layers(model))], seed=1, narrow=narrow)


def _pass(part: Part, tokens: torch.Tensor, targets: torch.Tensor) -> None:
    group = part.tensor_group
    try:
        logits = walk_of(part.chunks[0])(tokens, _directly)
        loss = divided(token_cross_entropy, group, part.vocabulary or 0)(logits, targets)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
    except BaseException:
        for each in (group, part.expert_group):
            if isinstance(each, Threaded | ThreadedExperts):
                each.table.barrier.abort()
        raise


def _directly(index: int, layer: Any, given: Any, call: Any = None) -> Any:
    del index
    return (call or layer)(given)
