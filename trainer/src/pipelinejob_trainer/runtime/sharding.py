"""Sharding over the ranks that hold the same parameters (ZeRO, Rajbhandari et al. 2019, arXiv 1910.02054).

The parameters of a bucket lie one behind the other in one piece of memory, of which each of the
bucket's ranks has an equal stretch to update, and the optimiser's state of that. Gradients are
added up as they are otherwise, once a step, but each rank gets the sums of its own stretch only.

Where the optimiser alone is sharded (ZeRO-1), the memory is always there, and behind the update
the stretches are gathered: what is sent is what an all-reduce would. Where parameters are sharded
as well (ZeRO-3, FSDP), a rank keeps its stretch alone, a bucket is of one layer, and passes gather
it (`gathering.py`). What several stages share is needed by ranks at different times, so it is
always there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from pipelinejob_trainer.runtime.reduction import Bucket, Ranks, Sum, gradient_of


class Exchange(Protocol):
    """What sharding exchanges among the ranks of a bucket, in the order of `Share.ranks`."""

    def scatter(self, ranks: Ranks, sums: torch.Tensor, given: torch.Tensor) -> Sum:
        """Start to add up what all give, of which this rank gets its own part in `sums`."""

    def gather(self, ranks: Ranks, whole: torch.Tensor, own: torch.Tensor) -> Sum:
        """Start to fill `whole` with every rank's own part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A bucket's parameters in one piece of memory, and this rank's stretch of it.

    `own` holds, for each parameter, what of it lies in the stretch, perhaps nothing; `places` is
    where that is in the stretch. `kept` is the stretch where nothing else is kept of the memory;
    None where all is.
    """

    bucket: Bucket
    flat: torch.Tensor
    mine: int  # among the bucket's ranks
    own: tuple[nn.Parameter, ...]
    places: tuple[tuple[int, int], ...]
    kept: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """The length of a stretch."""
        return self.flat.numel() // len(self.bucket.share.ranks)

    @property
    def stretch(self) -> torch.Tensor:
        """This rank's."""
        return self.flat[self.mine * self.length : (self.mine + 1) * self.length]


class Shards:
    """A rank's shards. `own` and `stretches` are by the parameters' global names.

    The first are what the optimiser updates in their stead, flattened; the second which elements
    [first, end) of each flattened parameter those are. `kept` are those of `own` of whose
    parameters nothing else is there between passes.
    """

    def __init__(
        self,
        buckets: Iterable[Bucket],
        names: Mapping[nn.Parameter, str],
        rank: int,
        *,
        is_kept: Callable[[Bucket], bool] = lambda _: False,
    ) -> None:
        """Move the buckets' parameters; `rank` is a place, as those of shares are.

        `is_kept` tells of which buckets this rank's stretch alone is kept.
        """
        made = [_shard(bucket, rank, is_kept=is_kept(bucket)) for bucket in buckets]
        self.by_bucket = {id(shard.bucket): shard for shard, _ in made}
        self.own: dict[str, nn.Parameter] = {}
        self.stretches: dict[str, tuple[int, int]] = {}
        self.kept: dict[str, nn.Parameter] = {}
        for shard, stretches in made:
            of_bucket = zip(shard.bucket.parameters, shard.own, stretches, strict=True)
            for parameter, own, stretch in of_bucket:
                self.own[names[parameter]] = own
                self.stretches[names[parameter]] = stretch
                if shard.kept is not None:
                    self.kept[names[parameter]] = own

    @torch.no_grad()
    def gather(self, exchange: Exchange) -> None:
        """Fill parameters that are always there with what their ranks have made of them. Raises PeerLostError."""
        under_way = [
            exchange.gather(shard.bucket.share.ranks, shard.flat, shard.stretch.clone())
            for shard in self.by_bucket.values()
            if shard.kept is None
        ]
        for each in under_way:
            each.wait()


class ShardedReducer:
    """Adds up a rank's gradients with those of the other ranks, each rank those that it updates."""

    def __init__(self, buckets: Sequence[Bucket], shards: Shards, exchange: Exchange) -> None:
        self.buckets = tuple(buckets)
        self._shards = shards
        self._exchange = exchange
        self._under_way: list[tuple[Shard, Sum, torch.Tensor, bool]] = []

    @torch.no_grad()
    def start(self, bucket: Bucket) -> None:
        """Start to add up a bucket's gradients; the parameters' own are let go of.

        Raises PeerLostError, UserError for sparse ones.
        """
        shard, parameters = self._shards.by_bucket[id(bucket)], bucket.parameters
        num_ranks = len(bucket.share.ranks)
        # Behind each stretch goes on how many ranks there is a gradient: what none has used has
        # none.
        are_there = [parameter.grad is not None for parameter in parameters]
        given = shard.flat.new_zeros(num_ranks, shard.length + len(parameters))
        given[:, shard.length :] = torch.tensor(are_there, dtype=given.dtype, device=given.device)
        offset = 0
        for parameter in parameters:  # one at a time, so that gradients are not held twice
            _put(given[:, : shard.length], offset, gradient_of(parameter).flatten())
            offset += parameter.numel()
            parameter.grad = None
        sums = given.new_empty(given.shape[1])
        under_way = self._exchange.scatter(bucket.share.ranks, sums, given.flatten())
        self._under_way.append((shard, under_way, sums, all(are_there)))

    def wait(self) -> None:
        """Return when the gradients of this rank's stretches hold their sums. Raises PeerLostError."""
        for shard, under_way, sums, are_all_there in self._under_way:
            under_way.wait()
            numbers = None if are_all_there else sums[shard.length :].tolist()
            for place, (own, (first, end)) in enumerate(zip(shard.own, shard.places, strict=True)):
                is_there = numbers is None or numbers[place] > 0
                own.grad = sums[first:end] if is_there else None
        self._under_way.clear()


def _put(rows: torch.Tensor, offset: int, values: torch.Tensor) -> None:
    """Copy values into rows as if these lay one behind the other, from an element on."""
    done, length = 0, rows.shape[1]
    while done < values.numel():
        row, at = divmod(offset + done, length)
        size = min(length - at, values.numel() - done)
        rows[row, at : at + size] = values[done : done + size]
        done += size


@torch.no_grad()
def _shard(bucket: Bucket, rank: int, *, is_kept: bool) -> tuple[Shard, list[tuple[int, int]]]:
    """Move a bucket's parameters; return the shard, and which elements of each parameter are this rank's."""
    num_ranks, mine = len(bucket.share.ranks), bucket.share.ranks.index(rank)
    length = -(-sum(each.numel() for each in bucket.parameters) // num_ranks)
    flat = bucket.parameters[0].new_zeros(num_ranks * length)
    places, stretches = [], []
    begin, end_of_all = mine * length, (mine + 1) * length
    offset = 0
    for parameter in bucket.parameters:
        size = parameter.numel()
        flat[offset : offset + size].copy_(parameter.detach().flatten())
        parameter.data = flat[offset : offset + size].view(parameter.shape)
        first, end = (min(max(each - offset, 0), size) for each in (begin, end_of_all))
        places.append((offset + first - begin, offset + end - begin) if end > first else (0, 0))
        stretches.append((first, end))
        offset += size
    stretch = flat[begin:end_of_all].clone() if is_kept else flat[begin:end_of_all]
    own = tuple(nn.Parameter(stretch[first:end]) for first, end in places)
    if is_kept:
        flat.untyped_storage().resize_(0)
    kept = stretch if is_kept else None
    return Shard(bucket=bucket, flat=flat, mine=mine, own=own, places=tuple(places), kept=kept), stretches
