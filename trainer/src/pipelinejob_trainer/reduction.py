"""Parameters that live on several ranks: their gradients are added up over all of them, the sooner the better.

A stage lives on one rank of each replica, and of a bidirectional pipeline on two; a parameter that two layers share (a
head tied to the embedding) lives wherever either layer does. All of that is one thing: a parameter has a set of ranks.

What lives on the same ranks for the same stages is reduced together, as soon as the rank's last backward pass of those
stages is done, while other stages are still at work. All ranks start what they have in common in the same order, by
stage, the last one first, which is the order in which backward passes end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import distributed, nn

from pipelinejob.schedules.actions import GIVES_GRADIENT, ActionKind, Route, Schedule
from pipelinejob_trainer.errors import PeerLostError
from pipelinejob_trainer.parallel import new_group, rank_of

_BUCKET_BYTES = 64 << 20  # gradients are copied into a bucket before they travel; so much is held twice at a time

# What adds to parameters' gradients; an input half may, see `backward`.
GRADIENT_KINDS = GIVES_GRADIENT | {ActionKind.WEIGHT}

Ranks = tuple[int, ...]
Stages = tuple[int, ...]


class Sum(Protocol):
    """A sum over ranks that is under way."""

    def wait(self) -> object:
        """Return when the tensor holds the sum."""


# Starts to add a tensor up, in place, over some ranks.
SumOver = Callable[[Ranks, torch.Tensor], Sum]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Where a parameter lives: the stages that use it, and the ranks that hold them."""

    stages: Stages
    ranks: Ranks

    def is_counted_by(self, rank: int) -> bool:
        """Say whether a rank is the one that counts the parameter in sums over all parameters."""
        return rank == self.ranks[0]


def share_of(
    layers: Iterable[int], cuts: Sequence[tuple[int, int]], routes: Sequence[Route], *, replicas: int
) -> Share:
    """Give the share of a parameter that some layers use; `cuts` are the layers [first, end) of each stage."""
    stages = sorted({next(s for s, (first, end) in enumerate(cuts) if first <= layer < end) for layer in layers})
    pipeline = max(routes[0]) + 1
    within = {route[stage] for stage in stages for route in routes}
    ranks = sorted(rank_of(each, rank, pipeline=pipeline) for each in range(replicas) for rank in within)
    return Share(stages=tuple(stages), ranks=tuple(ranks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Parameters that are reduced together."""

    share: Share
    parameters: tuple[nn.Parameter, ...]


def buckets(parameters: Mapping[str, nn.Parameter], shares: Mapping[str, Share]) -> tuple[Bucket, ...]:
    """Sort what a rank has into buckets, in the order in which they are reduced.

    What lives on one rank only is left out. The order, and what is in a bucket, is the same on all of a bucket's ranks.
    """
    by_share: dict[tuple[Share, torch.dtype], list[str]] = {}
    for name in sorted(parameters):
        share, parameter = shares[name], parameters[name]
        if len(share.ranks) > 1 and parameter.requires_grad:
            by_share.setdefault((share, parameter.dtype), []).append(name)
    in_order = sorted(by_share, key=lambda key: (-key[0].stages[0], key[0].stages, str(key[1])))
    return tuple(
        Bucket(share=key[0], parameters=bucket)
        for key in in_order
        for bucket in _filled(parameters[name] for name in by_share[key])
    )


def _filled(parameters: Iterable[nn.Parameter]) -> Iterator[tuple[nn.Parameter, ...]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(each.nbytes for each in bucket) + parameter.nbytes > _BUCKET_BYTES:
            yield tuple(bucket)
            bucket = []
        bucket.append(parameter)
    yield tuple(bucket)


def bucket_starts(schedule: Schedule, rank: int, buckets: Sequence[Bucket]) -> dict[int, list[Bucket]]:
    """Say after which actions of a rank, by their place in its list, the reduction of which buckets starts.

    That is when the last gradient of a bucket's stages is there and all buckets before it have started, so that all
    ranks start what they have in common in the same order.
    """
    ended: dict[int, int] = {}
    for position, action in enumerate(schedule.ranks[rank]):
        if action.kind in GRADIENT_KINDS:
            ended[schedule.stage_of(rank, action)] = position
    starts: dict[int, list[Bucket]] = {}
    latest = 0
    for bucket in buckets:
        latest = max(latest, *(ended.get(stage, 0) for stage in bucket.share.stages))
        starts.setdefault(latest, []).append(bucket)
    return starts


class Reducer:
    """Adds a rank's gradients up with those of all ranks that hold the same parameters."""

    def __init__(self, buckets: Sequence[Bucket], sum_over: SumOver) -> None:
        self.buckets = tuple(buckets)
        self._sum_over = sum_over
        self._under_way: list[Sum] = []

    @torch.no_grad()
    def start(self, bucket: Bucket) -> None:
        """Start to add up a bucket's gradients; they must not be touched until `wait`. Raises PeerLostError."""
        flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket.parameters])
        pieces = torch.split(flat, [parameter.numel() for parameter in bucket.parameters])
        for parameter, piece in zip(bucket.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        self._under_way.append(self._sum_over(bucket.share.ranks, flat))

    def wait(self) -> None:
        """Return when all gradients that were started hold their sums. Raises PeerLostError."""
        for each in self._under_way:
            each.wait()
        self._under_way.clear()


def sums_over_groups(shares: Iterable[Share]) -> SumOver:
    """Form the groups that reductions need; every rank calls it at the same point, with all shares of the model."""
    groups = {ranks: new_group(ranks) for ranks in sorted({share.ranks for share in shares}) if len(ranks) > 1}

    def sum_over(ranks: Ranks, tensor: torch.Tensor) -> Sum:
        try:
            work = distributed.all_reduce(tensor, group=groups[ranks], async_op=True)
        except RuntimeError as error:
            raise _lost(error) from error
        assert work is not None, "a rank reduces only what it holds"
        return _GroupSum(work)

    return sum_over


class _GroupSum:
    def __init__(self, work: distributed.Work) -> None:
        self._work = work

    def wait(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise _lost(error) from error


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    # A layer that a step did not use here may have been used elsewhere.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _lost(error: RuntimeError) -> PeerLostError:
    return PeerLostError(f"another rank went away: {str(error).splitlines()[0]}")
