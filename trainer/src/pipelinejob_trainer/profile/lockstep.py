"""How processes that measure at the same time stay synchronised."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from pipelinejob_trainer.communication.process_groups import Groups, new_group
from pipelinejob_trainer.process.config import Address, prepare_environment
from pipelinejob_trainer.profile.workers import Worker

_TIMEOUT = timedelta(minutes=5)


class Alone:
    """A process that measures by itself."""

    def agree(self, seconds: float) -> float:
        """Return the number itself."""
        return seconds


@dataclass(frozen=True, slots=True)
class Lockstep:
    """One of several processes.

    The first `num_at_once` measure layers; the first two play a pipeline.
    """

    rank: int
    at_work: distributed.ProcessGroup
    num_at_once: int
    pair: Groups

    @property
    def measures_layers(self) -> bool:
        """Whether this process has a core for measuring layers."""
        return self.rank < self.num_at_once

    @property
    def is_in_pair(self) -> bool:
        """Whether this process is one of the two that play a pipeline."""
        return self.rank < 2  # noqa: PLR2004 # a pair

    def agree(self, seconds: float) -> float:
        """Wait for all that measure layers; return the largest of their numbers."""
        value = torch.tensor([seconds], dtype=torch.float64)
        distributed.all_reduce(value, op=distributed.ReduceOp.MAX, group=self.at_work)
        return float(value)

    def broadcast(self, number: int) -> int:
        """Return the first process's number."""
        value = torch.tensor([number])
        distributed.broadcast(value, src=0)
        return int(value)


@contextmanager
def joined(worker: Worker, num_at_once: int) -> Iterator[Lockstep]:
    """Join the others, and leave at the end."""
    prepare_environment(Address(host="127.0.0.1", port=worker.port))
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{worker.port}", rank=worker.rank, world_size=worker.size, timeout=_TIMEOUT
    )
    try:
        yield meet(num_at_once)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def meet(num_at_once: int) -> Lockstep:
    """Form groups of an initialised torch.distributed; every process calls it."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    at_work = new_group(range(min(num_at_once, size)))
    there, back, world = (new_group(range(2)) for _ in range(3))
    alone = [new_group([each]) for each in range(size)]
    pair = Groups(world=world, pipeline=there, pipeline_back=back, data=alone[rank])
    return Lockstep(rank=rank, at_work=at_work, num_at_once=num_at_once, pair=pair)
