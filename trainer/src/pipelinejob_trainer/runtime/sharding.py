"""Sharding of the optimiser over the ranks that hold the same parameters (ZeRO-1, Rajbhandari et al. 2019).

arXiv 1910.02054. The parameters of a bucket lie one behind the other in one piece of memory, of which
each of the bucket's ranks has an equal stretch to update, and the optimiser's state of that. Gradients are
added up as they are otherwise, once a step, but each rank gets the sums of its own stretch only; behind
the update, the stretches are gathered. It sends what an all-reduce would.
"""

from collections.abc import Iterable, Mapping, Sequence
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

    `own` holds, for each parameter, what of it lies in the stretch, perhaps nothing; `places` is where that
    is in the stretch.
    """

    bucket: Bucket
    flat: torch.Tensor
    mine: int  # among the bucket's ranks
    own: tuple[nn.Parameter, ...]
    places: tuple[tuple[int, int], ...]

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

    The first are what the optimiser updates in their stead, flattened; the second which elements [first,
    end) of each flattened parameter those are.
    """

    def __init__(self, buckets: Iterable[Bucket], names: Mapping[nn.Parameter, str], rank: int) -> None:
        """Move the buckets' parameters; `rank` is a place, as those of shares are."""
        made = [_shard(bucket, rank) for bucket in buckets]
        self.by_bucket = {id(shard.bucket): shard for shard, _ in made}
        self.own: dict[str, nn.Parameter] = {}
        self.stretches: dict[str, tuple[int, int]] = {}
        for shard, stretches in made:
            of_bucket = zip(shard.bucket.parameters, shard.own, stretches, strict=True)
            for parameter, own, stretch in of_bucket:
                self.own[names[parameter]] = own
                self.stretches[names[parameter]] = stretch

    @torch.no_grad()
    def gather(self, exchange: Exchange) -> None:
        """Fill all parameters with what their ranks have made of them. Raises PeerLostError."""
        under_way = [
            exchange.gather(shard.bucket.share.ranks, shard.flat, shard.stretch.clone())
            for shard in self.by_bucket.values()
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
        # Behind each stretch goes on how many ranks there is a gradient: what none has used has none.
        are_there = [parameter.grad is not None for parameter in parameters]
        numbers = torch.tensor(are_there, dtype=shard.flat.dtype, device=shard.flat.device)
        padding = shard.flat.new_zeros(shard.flat.numel() - sum(each.numel() for each in parameters))
        flat = torch.cat([*(gradient_of(parameter).flatten() for parameter in parameters), padding])
        given = torch.cat((flat.view(num_ranks, -1), numbers.expand(num_ranks, -1)), dim=1)
        for parameter in parameters:
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


@torch.no_grad()
def _shard(bucket: Bucket, rank: int) -> tuple[Shard, list[tuple[int, int]]]:
    """Move a bucket's parameters; return the shard, and which elements of each parameter are this rank's."""
    num_ranks, mine = len(bucket.share.ranks), bucket.share.ranks.index(rank)
    length = -(-sum(each.numel() for each in bucket.parameters) // num_ranks)
    flat = bucket.parameters[0].new_zeros(num_ranks * length)
    own, places, stretches = [], [], []
    begin, end_of_all = mine * length, (mine + 1) * length
    offset = 0
    for parameter in bucket.parameters:
        size = parameter.numel()
        flat[offset : offset + size].copy_(parameter.detach().flatten())
        parameter.data = flat[offset : offset + size].view(parameter.shape)
        first, end = (min(max(each - offset, 0), size) for each in (begin, end_of_all))
        own.append(nn.Parameter(flat[offset + first : offset + end]))
        places.append((offset + first - begin, offset + end - begin) if end > first else (0, 0))
        stretches.append((first, end))
        offset += size
    return Shard(bucket=bucket, flat=flat, mine=mine, own=tuple(own), places=tuple(places)), stretches
