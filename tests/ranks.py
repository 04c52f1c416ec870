"""What processes of tests/trainer/test_runtime.py do; here, as they must find it by name in a module on the path."""

import os
from typing import Any

import torch
from torch import distributed

from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.link import Channel, DistributedReceiver, DistributedSender
from pipelinejob_trainer.parallel import connect, process_groups, sum_gradients
from pipelines import CPU, Job, make_runtime


def dying_rank(rank: int, job: Job) -> None:
    groups = process_groups(pipeline=3, data=1)
    _, recorder, runtime = make_runtime(job, rank=rank, links=connect(groups, pipeline=3, data=1, device=CPU))
    for step in range(1, job.steps + 1):
        if rank == 1 and step == 3:
            os._exit(9)
        runtime.run_step(step)
        recorder.finish_step()


def exchanging_rank(rank: int) -> list[Any]:
    channel = Channel(group=distributed.group.WORLD, peer=1 - rank, device=CPU)
    tensors = [torch.arange(6.0).view(2, 3) + i for i in range(3)]
    if rank == 0:
        sender = DistributedSender(channel)
        for micro_batch, tensor in enumerate(tensors):
            sender.send(micro_batch, tensor)
        sender.flush()
    else:
        receiver = DistributedReceiver(channel)
        receiver.expect([0, 1, 2])
        tensors = [receiver.receive(micro_batch) for micro_batch in range(3)]
    return [(tensor.tolist(), str(tensor.dtype)) for tensor in tensors]


def changing_rank(rank: int) -> str:
    sender = DistributedSender(Channel(group=distributed.group.WORLD, peer=0, device=CPU))
    sender._like = (torch.Size([2]), torch.float32)
    try:
        sender.send(0, torch.zeros(3))
    except UserError as error:
        return str(error)
    return "sent"


def summing_rank(rank: int) -> list[Any]:
    both, one = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    both.grad = torch.full((2,), rank + 1.0)
    if rank == 0:
        one.grad = torch.ones(1)
    sum_gradients([both, one], distributed.group.WORLD)
    assert one.grad is not None
    return [both.grad.tolist(), one.grad.tolist()]


def group_rank(rank: int) -> tuple[list[int], list[int]]:
    groups = process_groups(pipeline=2, data=2)
    return distributed.get_process_group_ranks(groups.pipeline), distributed.get_process_group_ranks(groups.data)
