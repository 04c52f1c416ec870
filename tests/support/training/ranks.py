"""What processes of tests/trainer do; here, as they must find it by name in a module on the path."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Experts
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.agreement import Shapes
from pipelinejob_trainer.communication.expert_group import ExpertGroup
from pipelinejob_trainer.communication.links import Channel, DistributedInbox, DistributedOutbox
from pipelinejob_trainer.communication.messages import Border, Message
from pipelinejob_trainer.communication.packing import TensorSpec
from pipelinejob_trainer.communication.process_groups import process_groups
from pipelinejob_trainer.models.decoder.experts import MixtureOfExperts
from pipelinejob_trainer.models.expert_parallel import divide_experts
from pipelinejob_trainer.models.tensor_parallel import Slice
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.profile.lockstep import meet
from pipelinejob_trainer.profile.overheads import Overheads, played_overheads
from pipelinejob_trainer.runtime.reduction import Reducer, Share, buckets, sums_over_groups
from support.training import loops
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


class Told(StageStatus):
    """What a rank says of its memory and its links."""

    held: tuple[int, int] = (0, 0)
    sent = 0

    def set_memory(self, *, peak_bytes: int, parameter_bytes: int, optimizer_bytes: int) -> None:
        super().set_memory(peak_bytes=peak_bytes, parameter_bytes=parameter_bytes, optimizer_bytes=optimizer_bytes)
        self.held = parameter_bytes, optimizer_bytes

    def set_bytes(self, direction: str, total: int) -> None:
        super().set_bytes(direction, total)
        if direction == "expert":
            self.sent = total


def told(rank: int, plans: list[Plan], folder: Path) -> list[tuple[int, int, int, int]]:
    """Train plans as one of their ranks; return its stage, the bytes that it sent, and what it held."""
    torch.set_num_threads(1)
    found = []
    for number, plan in enumerate(plans):
        place, tensor = divmod(rank, plan.parallelism.tensor)
        replica, stage = divmod(place, plan.parallelism.pipeline)
        status, own = Told(plan, stage=stage, replica=replica, attempt=1), folder / str(number)
        loops._trained(plan, loops.config(plan, stage=stage, replica=replica, tensor=tensor, folder=own), status)
        found.append((stage, status.sent, *status.held))
    return found


def lopsided(rank: int) -> list[torch.Tensor]:
    """Send all tokens of two replicas to one expert of the first; return pairs of what should be equal."""
    torch.manual_seed(1)
    whole = MixtureOfExperts(Experts(num=4, per_token=1, auxiliary_loss=0.0), hidden=16, inner=32)
    with torch.no_grad():
        for each in whole.parameters():
            each.normal_()
        whole.router.weight.fill_(-1.0)[1] = 1.0
    group = ExpertGroup(rank, 2)
    group.meet(distributed.group.WORLD)
    own = copy.deepcopy(whole)
    divide_experts(own, group)
    for each in (own.gate_up, own.down):
        each.data = Slice(0).of(each.data, group)
    tokens = torch.rand(2, 5, 16)
    everyones, mine = tokens.clone().requires_grad_(), tokens[rank : rank + 1].clone().requires_grad_()
    for layer, given in ((whole, everyones), (own, mine)):
        layer(given)[0].square().sum().backward()
    assert everyones.grad is not None
    assert whole.gate_up.grad is not None
    expected = everyones.grad[rank : rank + 1], Slice(0).of(whole.gate_up.grad, group)
    return [whole(tokens)[0][rank : rank + 1], own(tokens[rank : rank + 1])[0], expected[0], mine.grad, expected[1],
            own.gate_up.grad]  # fmt: skip
