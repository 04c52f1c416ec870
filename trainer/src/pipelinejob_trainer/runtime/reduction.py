"""Gradients of parameters on several ranks are added up over those ranks, as early as possible.

A stage is on one rank of each replica, and in a bidirectional pipeline on two; a parameter that
two layers share (a head tied to the embedding) is wherever either layer is; experts that replicas
divide are on some of these. All these cases are one: a parameter has a set of ranks.

Parameters on the same ranks, of the same stages, are reduced together, as soon as the rank's last
backward pass of those stages is done, while other stages still compute. All ranks start common
reductions in the same order, by stage, the last one first, which is the order in which backward
passes end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import distributed, nn

from pipelinejob.schedules.actions import GIVES_GRADIENT, ActionKind, Route, Schedule
from pipelinejob_trainer.base.errors import PeerLostError, UserError
from pipelinejob_trainer.base.waiting import Awaiting
from pipelinejob_trainer.communication.process_groups import new_group, rank_of
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.own.refusals import SPARSE

_BUCKET_BYTES = 64 << 20  # gradients are copied into a bucket before they travel; so much is held twice at a time

# What adds to parameters' gradients; an input half may, see `backward`.
GRADIENT_KINDS = GIVES_GRADIENT | {ActionKind.WEIGHT}

Ranks = tuple[int, ...]
Stages = tuple[int, ...]


class Sum(Protocol):
    """A sum over ranks in progress."""

    def wait(self) -> object:
        """Return when the tensor holds the sum."""


# Starts to add a tensor up, in place, over some ranks.
SumOver = Callable[[Ranks, torch.Tensor], Sum]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Where a parameter is: the stages that use it, and the ranks that hold them."""

    stages: Stages
    ranks: Ranks

    def is_counted_by(self, rank: int) -> bool:
        """Return whether this rank counts the parameter in sums over all parameters."""
        return rank == self.ranks[0]


def share_of(
    layers: Iterable[int], cuts: Sequence[tuple[int, int]], routes: Sequence[Route], *, replicas: Iterable[int]
) -> Share:
    """Return the share of a parameter that some layers use, and some replicas hold.

    `cuts` are the layers [first, end) of each stage.
    """
    stages = sorted({next(s for s, (first, end) in enumerate(cuts) if first <= layer < end) for layer in layers})
    pipeline = max(routes[0]) + 1
    within = {route[stage] for stage in stages for route in routes}
    ranks = sorted(rank_of(each, rank, pipeline=pipeline) for each in replicas for rank in within)
    return Share(stages=tuple(stages), ranks=tuple(ranks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Parameters that are reduced together."""

    share: Share
    parameters: tuple[nn.Parameter, ...]


def buckets(
    parameters: Mapping[str, nn.Parameter],
    shares: Mapping[str, Share],
    layer_of: Callable[[str], int] = lambda _: 0,
) -> tuple[Bucket, ...]:
    """Sort a rank's parameters into buckets, in the order in which they are reduced.

    Parameters on a single rank are left out. Order and contents are the same on all of a bucket's
    ranks. Parameters of different layers are in different buckets if `layer_of` tells them apart.
    """
    by_share: dict[tuple[Share, torch.dtype, int], list[str]] = {}
    for name in sorted(parameters):
        share, parameter = shares[name], parameters[name]
        if len(share.ranks) > 1 and parameter.requires_grad:
            by_share.setdefault((share, parameter.dtype, layer_of(name)), []).append(name)
    in_order = sorted(by_share, key=lambda key: (-key[0].stages[0], key[0].stages, str(key[1]), -key[2]))
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
    """Return the buckets that start after each action of a rank, by the action's position.

    A bucket starts when the last gradient of its stages is there and all buckets before it have
    started, so that all ranks start common ones in the same order.
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
    """Adds up a rank's gradients with those of the other ranks that hold the same parameters."""

    def __init__(self, buckets: Sequence[Bucket], sum_over: SumOver) -> None:
        self.buckets = tuple(buckets)
        self._sum_over = sum_over
        self._under_way: list[_InProgress] = []

    @torch.no_grad()
    def start(self, bucket: Bucket) -> None:
        """Start to add up a bucket's gradients; they must not be touched until `wait`.

        Raises PeerLostError, UserError for sparse ones.
        """
        parameters = bucket.parameters
        # Behind the gradients goes on how many ranks there is one: what none has used has none,
        # here as in torch.
        are_there = [parameter.grad is not None for parameter in parameters]
        numbers = torch.tensor(are_there, dtype=parameters[0].dtype, device=parameters[0].device)
        flat = torch.cat([*(gradient_of(parameter).flatten() for parameter in parameters), numbers])
        *pieces, numbers = torch.split(flat, [*(parameter.numel() for parameter in parameters), len(parameters)])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        under_way = self._sum_over(bucket.share.ranks, flat)
        self._under_way.append(_InProgress(under_way, parameters, None if all(are_there) else numbers))

    def wait(self) -> None:
        """Return when all gradients that were started hold their sums. Raises PeerLostError."""
        for each in self._under_way:
            each.wait()
        self._under_way.clear()


@dataclass(frozen=True, slots=True)
class _InProgress:
    """A sum in progress, and on how many ranks each parameter has a gradient.

    `numbers` is None if all parameters have a gradient on this rank.
    """

    sum: Sum
    parameters: tuple[nn.Parameter, ...]
    numbers: torch.Tensor | None

    def wait(self) -> None:
        self.sum.wait()
        if self.numbers is None:
            return
        for parameter, number in zip(self.parameters, self.numbers.tolist(), strict=True):
            if not number:
                parameter.grad = None


def sums_over_groups(shares: Iterable[Share], tensor: TensorGroup = ALONE) -> "SumsOverGroups":
    """Form the groups for reductions.

    Every rank calls it at the same point, with all shares of the model. The ranks of a share are
    places; of those that share layers (`tensor`), each sums with its like.
    """
    among = [ranks for ranks in sorted({share.ranks for share in shares}) if len(ranks) > 1]
    made = {
        (ranks, mine): new_group(place * tensor.size + mine for place in ranks)
        for mine in range(tensor.size)
        for ranks in among
    }
    return SumsOverGroups({ranks: made[ranks, tensor.rank] for ranks in among})


class SumsOverGroups:
    """Sums over process groups, as `SumOver` has them, and their two halves. All raise PeerLostError."""

    def __init__(self, groups: Mapping[Ranks, distributed.ProcessGroup]) -> None:
        self._groups = groups

    def __call__(self, ranks: Ranks, tensor: torch.Tensor) -> Sum:
        return _started(lambda: distributed.all_reduce(tensor, group=self._groups[ranks], async_op=True))

    def scatter(self, ranks: Ranks, sums: torch.Tensor, given: torch.Tensor) -> Sum:
        """Start to add up what all give, of which this rank gets its own part in `sums`."""
        group = self._groups[ranks]
        return _started(lambda: distributed.reduce_scatter_tensor(sums, given, group=group, async_op=True))

    def gather(self, ranks: Ranks, whole: torch.Tensor, own: torch.Tensor) -> Sum:
        """Start to fill `whole` with every rank's own part."""
        group = self._groups[ranks]
        return _started(lambda: distributed.all_gather_into_tensor(whole, own, group=group, async_op=True))


def _started(start: Callable[[], distributed.Work | None]) -> Sum:
    try:
        work = start()
    except RuntimeError as error:
        raise _lost(error) from error
    assert work is not None, "a rank reduces only what it holds"
    return _GroupSum(work)


class _GroupSum:
    def __init__(self, work: distributed.Work) -> None:
        self._work = work

    def wait(self) -> None:
        try:
            with Awaiting(None):
                self._work.wait()
        except RuntimeError as error:
            raise _lost(error) from error


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """Return a parameter's gradient, zeros where it has none. Raises UserError for a sparse one."""
    # A layer that a step did not use here may have been used elsewhere.
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.layout is not torch.strided:
        raise UserError(
            "SparseGradient", f"the gradient of a parameter of shape {tuple(parameter.shape)} is sparse; {SPARSE}"
        )
    return parameter.grad


def _lost(error: RuntimeError) -> PeerLostError:
    return PeerLostError(f"another rank went away: {str(error).splitlines()[0]}")
