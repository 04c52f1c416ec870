"""Process groups and links.

A place is a rank of a replica's pipeline, with number replica * pipeline + rank in the pipeline.
On each place stand `tensor` ranks that share its layers: global rank = place * tensor + rank in
the tensor group. Those with the same one talk to each other over borders and reduce among
replicas.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import cast

import torch
from torch import distributed

from pipelinejob.schedules.actions import Route
from pipelinejob_trainer.communication.agreement import Shapes
from pipelinejob_trainer.communication.links import Channel, DistributedInbox, DistributedOutbox, Links


def rank_of(replica: int, stage: int, *, pipeline: int) -> int:
    """Return the number of a place: of a rank of a replica's pipeline."""
    return replica * pipeline + stage


def who(rank: int, *, pipeline: int, tensor: int) -> str:
    """Say where a rank, of all, stands."""
    place, mine = divmod(rank, tensor)
    replica, stage = divmod(place, pipeline)
    return f"{f'tensor rank {mine} of ' if tensor > 1 else ''}stage {stage} of replica {replica}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """This rank's process groups.

    A pipeline's ranks have two, one for messages to later ranks and one for those to earlier
    ranks. gloo's receiving thread polls a connection that another thread is sending on: one
    connection for both directions would keep a processor busy for as long as a send takes, and
    slow the sender down where processors are few.
    """

    world: distributed.ProcessGroup
    pipeline: distributed.ProcessGroup  # the ranks of this replica, in order
    pipeline_back: distributed.ProcessGroup  # the same
    data: distributed.ProcessGroup  # the replicas of this rank, in order
    tensor: distributed.ProcessGroup | None = None  # those that share this rank's layers, in order; None: it is alone
    expert: distributed.ProcessGroup | None = None  # the replicas that divide its experts, in order; None: none do


def process_groups(*, pipeline: int, data: int, tensor: int = 1, expert: int = 1) -> Groups:
    """Form all groups, once torch.distributed is initialised.

    Every rank calls it, at the same point. Each `expert` consecutive replicas divide experts.
    """
    rank, world = distributed.get_rank(), distributed.group.WORLD
    assert world is not None, "init_process_group comes before process_groups"
    assert distributed.get_world_size() == pipeline * data * tensor, "as many ranks for each stage of each replica"
    place, mine = divmod(rank, tensor)
    replica, stage = divmod(place, pipeline)
    # Every rank must take part in forming every group, its own or not.
    places = [[rank_of(each, s, pipeline=pipeline) for s in range(pipeline)] for each in range(data)]
    of_tensor = [[[at * tensor + each for at in row] for row in places] for each in range(tensor)]
    there, back = ([[new_group(ranks) for ranks in rows] for rows in of_tensor] for _ in range(2))
    datas = [[new_group(ranks) for ranks in zip(*rows, strict=True)] for rows in of_tensor]
    sharing = range(0, pipeline * data * tensor, tensor)
    tensors = [new_group(range(first, first + tensor)) for first in sharing] if tensor > 1 else []
    of_experts = _groups_of_experts(of_tensor, expert) if expert > 1 else {}
    return Groups(
        world=world,
        pipeline=there[mine][replica],
        pipeline_back=back[mine][replica],
        data=datas[mine][stage],
        tensor=tensors[place] if tensors else None,
        expert=of_experts.get(rank),
    )


def _groups_of_experts(
    of_tensor: Sequence[Sequence[Sequence[int]]], expert: int
) -> dict[int, distributed.ProcessGroup]:
    """Form the groups of replicas that divide experts; return each rank's. Ranks are by tensor, replica and stage."""
    found: dict[int, distributed.ProcessGroup] = {}
    for rows in of_tensor:
        for of_stage in zip(*rows, strict=True):
            for first in range(0, len(of_stage), expert):
                ranks = of_stage[first : first + expert]
                found |= dict.fromkeys(ranks, new_group(ranks))
    return found


def connect(
    groups: Groups,
    *,
    routes: Sequence[Route],
    rows: Sequence[int],
    data: int,
    device: torch.device,
    tensor: int = 1,
) -> Links:
    """Link this rank to its neighbours on all routes; every rank calls it, at the same point.

    `rows` are the sequences of each micro-batch.
    """
    pipeline = max(routes[0]) + 1
    rank, shapes = groups.world.rank(), Shapes(rows)
    outboxes, inboxes = {}, {}
    for mine, replica in product(range(tensor), range(data)):
        for direction in _directions(routes):
            source, target = (rank_of(replica, end, pipeline=pipeline) * tensor + mine for end in direction)
            group = _group_of_direction(groups, source, target, device)
            if rank == source:
                outboxes[direction[1]] = DistributedOutbox(_channel(groups, group, target, device, shapes))
            elif rank == target:
                inboxes[direction[0]] = DistributedInbox(_channel(groups, group, source, device, shapes))
    return Links(outboxes=outboxes, inboxes=inboxes)


def _directions(routes: Sequence[Route]) -> list[tuple[int, int]]:
    """Return all pairs (sender, receiver) of a pipeline, in the same order on all ranks."""
    hops = {hop for route in routes for hop in pairwise(route) if hop[0] != hop[1]}
    return sorted(hops | {hop[::-1] for hop in hops})


def new_group(ranks: Iterable[int]) -> distributed.ProcessGroup:
    """Form a group; every rank calls it, member or not, at the same point."""
    # A rank outside the group gets a number instead; no such rank uses what it gets.
    return cast(distributed.ProcessGroup, distributed.new_group(list(ranks)))


def _group_of_direction(groups: Groups, source: int, target: int, device: torch.device) -> distributed.ProcessGroup:
    if device.type == "cpu":
        return groups.pipeline if source < target else groups.pipeline_back
    group = new_group((source, target))
    _introduce(group, source, target, device)
    return group


def _introduce(group: distributed.ProcessGroup, source: int, target: int, device: torch.device) -> None:
    """Exchange a first message.

    With NCCL both ends block at their first message until they have met; in the middle of a step,
    two ranks that each send first would block for ever.
    """
    token = torch.zeros(1, device=device)
    if distributed.get_rank() == source:
        distributed.send(token, target, group=group)
    elif distributed.get_rank() == target:
        distributed.recv(token, source, group=group)


def _channel(
    groups: Groups, group: distributed.ProcessGroup, peer: int, device: torch.device, shapes: Shapes
) -> Channel:
    return Channel(
        group=group,
        peer_in_group=distributed.get_group_rank(group, peer),
        world=groups.world,
        peer=peer,
        device=device,
        shapes=shapes,
    )
