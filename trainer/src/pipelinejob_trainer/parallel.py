"""How ranks are laid out and who talks to whom: rank = replica * pipeline + stage."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import distributed

from pipelinejob_trainer.link import Channel, DistributedReceiver, DistributedSender, Links


def rank_of(replica: int, stage: int, *, pipeline: int) -> int:
    """Give the rank of a stage of a replica."""
    return replica * pipeline + stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """This rank's process groups."""

    world: distributed.ProcessGroup
    pipeline: distributed.ProcessGroup  # the stages of this replica, in order
    data: distributed.ProcessGroup  # the replicas of this stage, in order


def process_groups(*, pipeline: int, data: int) -> Groups:
    """Form the groups of an initialised torch.distributed; every rank calls it, at the same point."""
    rank, world = distributed.get_rank(), distributed.group.WORLD
    assert world is not None, "init_process_group comes before process_groups"
    assert distributed.get_world_size() == pipeline * data, "one rank for each stage of each replica"
    replica, stage = divmod(rank, pipeline)
    # Every rank must take part in forming every group, its own or not.
    pipelines = [_group(rank_of(each, s, pipeline=pipeline) for s in range(pipeline)) for each in range(data)]
    datas = [_group(rank_of(each, s, pipeline=pipeline) for each in range(data)) for s in range(pipeline)]
    return Groups(world=world, pipeline=pipelines[replica], data=datas[stage])


def connect(groups: Groups, *, pipeline: int, data: int, device: torch.device) -> Links:
    """Link this rank to its neighbours; every rank calls it, at the same point."""
    rank = distributed.get_rank()
    links: dict[str, DistributedSender | DistributedReceiver] = {}
    for replica in range(data):
        for stage in range(pipeline - 1):
            here, there = (rank_of(replica, s, pipeline=pipeline) for s in (stage, stage + 1))
            for source, target, name in ((here, there, "activations"), (there, here, "gradients")):
                group = groups.world if device.type == "cpu" else _group((source, target))
                if rank == source:
                    links[f"{name}_out"] = DistributedSender(Channel(group=group, peer=target, device=device))
                elif rank == target:
                    links[f"{name}_in"] = DistributedReceiver(Channel(group=group, peer=source, device=device))
    return Links(**links)  # type: ignore[arg-type] # a name ending in _out holds a sender, one in _in a receiver


@torch.no_grad()
def sum_gradients(parameters: Iterable[torch.nn.Parameter], group: distributed.ProcessGroup) -> None:
    """Add up gradients over the replicas of a stage, in place, in one all-reduce of each type.

    Stages scale their losses by the number of replicas already, so the sum is the mean over the global batch.
    """
    if distributed.get_world_size(group) == 1:
        return
    by_type: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat, group=group)
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def _group(ranks: Iterable[int]) -> distributed.ProcessGroup:
    # A rank outside the group gets a number instead; no such rank uses what it gets.
    return cast(distributed.ProcessGroup, distributed.new_group(list(ranks)))
