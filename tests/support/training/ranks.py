"""What processes of tests/trainer do; here, as they must find it by name in a module on the path."""

import os
from typing import Any

import torch
from torch import distributed

from pipelinejob.contract.plan import Plan
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.agreement import Shapes
from pipelinejob_trainer.communication.links import Channel, DistributedInbox, DistributedOutbox
from pipelinejob_trainer.communication.messages import Border, Message
from pipelinejob_trainer.communication.packing import TensorSpec
from pipelinejob_trainer.communication.process_groups import process_groups
from pipelinejob_trainer.profile.lockstep import meet
from pipelinejob_trainer.profile.overheads import Overheads, played_overheads
from pipelinejob_trainer.runtime.reduction import Reducer, Share, buckets, sums_over_groups
from support.training.pipelines import CPU, Job, connect_all, make_rank

BORDER = Border(0, 0)


def activation(micro_batch: int) -> Message:
    return Message(border=BORDER, is_gradient=False, micro_batch=micro_batch, tag=(1 << 16) + micro_batch)


def channel(peer: int, rows: tuple[int, ...]) -> Channel:
    world = distributed.group.WORLD
    return Channel(group=world, peer_in_group=peer, world=world, peer=peer, device=CPU, shapes=Shapes(rows))


def dying_rank(rank: int, job: Job) -> None:
    links, _ = connect_all(job)
    made = make_rank(job, rank=rank, links=links)
    for step in range(1, job.steps + 1):
        if rank == 1 and step == 3:
            os._exit(9)
        made.runtime.run_step(step)
        made.recorder.finish_step()


def exchanging_rank(rank: int, dtype: torch.dtype) -> list[Any]:
    """Send three micro-batches, the last one shorter, and take them in another order than they were sent in."""
    rows = (2, 2, 1)
    tensors = [(torch.arange(3.0 * count).view(count, 3) + i).to(dtype).conj() for i, count in enumerate(rows)]
    if rank == 0:
        outbox = DistributedOutbox(channel(1, rows))
        for micro_batch, tensor in enumerate(tensors):
            outbox.send(activation(micro_batch), tensor)
        outbox.flush()
    else:
        inbox = DistributedInbox(channel(0, rows))
        inbox.expect([activation(micro_batch) for micro_batch in range(3)])
        taken = {position: inbox.receive(position) for position in (1, 0, 2)}
        tensors = [taken[position] for position in range(3)]
    return [(tensor.tolist(), str(tensor.dtype)) for tensor in tensors]


def changing_rank(rank: int) -> str:
    shapes = channel(0, (2, 2))
    shapes.shapes.agree(activation(0), TensorSpec(torch.Size((2,)), torch.float32))
    try:
        DistributedOutbox(shapes).send(activation(1), torch.zeros(3))
    except UserError as error:
        return str(error)
    return "sent"


def summing_rank(rank: int) -> list[Any]:
    both, one = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    both.grad = torch.full((2,), rank + 1.0)
    if rank == 0:
        one.grad = torch.ones(1)
    share = Share(ranks=(0, 1), stages=(0,))
    reducer = Reducer(buckets({"both": both, "one": one}, {"both": share, "one": share}), sums_over_groups([share]))
    for bucket in reducer.buckets:
        reducer.start(bucket)
    reducer.wait()
    return [both.grad.tolist(), one.grad.tolist()]


def group_rank(rank: int) -> tuple[list[int], list[int]]:
    groups = process_groups(pipeline=2, data=2)
    return distributed.get_process_group_ranks(groups.pipeline), distributed.get_process_group_ranks(groups.data)


def overheads_of(rank: int, plan: Plan, num_bytes: int) -> Overheads:
    """Play an empty pipeline of two."""
    return played_overheads(plan, meet(2).pair, num_bytes=num_bytes)
