"""A case as the trainer trains it: every rank's own preparation and loop, in threads of this process.

What stands in is what carries tensors from rank to rank (queues for links, sums in order of rank
for all-reduces), and who wishes the stop between two runs. Everything else is the trainer's: entry
point, layers, optimiser, preflight, evaluation, checkpoints, and what it tells of its steps.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import StepRecord
from pipelinejob.planning.playing import schedule_of
from pipelinejob_trainer.base.errors import PeerLostError, StoppedError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.process.config import Address, Config
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.runtime.reduction import SumOver
from pipelinejob_trainer.training import loop
from pipelinejob_trainer.training.membership import Membership
from support.training import inprocess
from support.training.masks import Masked
from zoo.case import Case, Leg

NOWHERE = Address(host="127.0.0.1", port=1)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a case's runs left behind: what was told of each step, the last checkpoint, and each rank's modules."""

    steps: Sequence[StepRecord]
    checkpoint: dict[str, torch.Tensor]
    modules: Sequence[dict[str, torch.Tensor]]


class ThreadGang(Gang):
    """A gang of threads: whatever its ranks do together is a sum over all of them."""

    def __init__(self, sum_over: SumOver, said: dict[int, object], *, rank: int, size: int, num_stages: int) -> None:
        self._sum_over = sum_over
        self._said = said  # by all ranks
        self.rank, self.size, self.num_stages = rank, size, num_stages
        self.replica, self.stage = divmod(rank, num_stages)
        self.num_tensor, self.tensor = 1, 0

    def sum(self, values: torch.Tensor) -> list[float]:
        return [float(value) for value in self._total(values.clone()).tolist()]

    def agree(self, numbers: Sequence[int]) -> list[int]:
        mine = torch.tensor(numbers, dtype=torch.int64)
        return [int(value) for value in self._total(mine if self.is_leader else mine * 0).tolist()]

    def gather(self, row: torch.Tensor) -> list[torch.Tensor]:
        rows = torch.zeros(self.size, *row.shape, dtype=row.dtype)
        rows[self.rank] = row
        return list(self._total(rows))

    def gather_values(self, value: object) -> list[object]:
        self._said[self.rank] = value
        self.barrier()
        values = [self._said[rank] for rank in range(self.size)]
        self.barrier()
        return values

    def all_agree(self, word: bool) -> bool:
        return int(self._total(torch.tensor([int(word)]))) == self.size

    def _total(self, tensor: torch.Tensor) -> torch.Tensor:
        self._sum_over(tuple(range(self.size)), tensor).wait()
        return tensor


class Meeting:
    """Where the ranks of a run meet: what one of them would find over the network."""

    def __init__(self, plan: Plan) -> None:
        self._schedule = schedule_of(plan)
        self._num_stages, self._num_replicas = plan.parallelism.pipeline, plan.parallelism.data
        self.size = self._num_stages * self._num_replicas
        self.baton = inprocess.Baton()
        self._words, self._gradients = inprocess.Sums(self.baton), inprocess.Sums(self.baton)
        self._said: dict[int, object] = {}
        self._links: list[list[Links]] = []
        self._is_broken = False
        self._lock = threading.Lock()

    def membership(self, rank: int) -> Membership:
        generations = iter(range(1000))
        return Membership(
            gang=ThreadGang(self._words.of(rank), self._said, rank=rank, size=self.size, num_stages=self._num_stages),
            link=lambda _: self._link(rank, next(generations)),
            sum_over=self._gradients.of(rank),
            rendezvous=NOWHERE,
            prefix="",
        )

    def leave(self, rank: int) -> None:
        """Tell all others that a rank has gone."""
        self._words.abort()
        self._gradients.abort()
        with self._lock:
            self._is_broken = True
            for ranks in self._links:
                for link in ranks[rank].outboxes.values():
                    link.close()

    def _link(self, rank: int, generation: int) -> Links:
        """Return a rank's links; all ranks ask equally often, each time for new ones."""
        with self._lock:
            if self._is_broken:
                raise PeerLostError("a rank went away before it was linked")
            while len(self._links) <= generation:
                replicas = (inprocess.links(self._schedule, self.baton) for _ in range(self._num_replicas))
                self._links.append([each for pipeline in replicas for each in pipeline])
            return self._links[generation][rank]


class StopAfter(StopRequest):
    """Whoever wishes that a run stop after a step."""

    def __init__(self, status: StageStatus, step: int) -> None:
        super().__init__(grace_s=30, on_overdue=lambda: None)
        self._status = status
        self._step = step

    def is_set(self) -> bool:
        return self._status.step + 1 >= self._step


def train(case: Case, text: Path, folder: Path) -> Trained:
    """Train a case below a folder. Raises what the trainer raises."""
    prepared: list[loop.Preparation] = []
    for attempt, leg in enumerate(case.legs, start=1):
        prepared = _run(case, leg, text, folder, attempt=attempt)
    return Trained(
        steps=told(folder),
        checkpoint=_checkpoint(folder / "checkpoints", case.steps),
        modules=[_state(each) for each in prepared],
    )


def told(folder: Path) -> list[StepRecord]:
    """Return what was told of the steps so far."""
    file = folder / names.STEPS_FILE
    return [StepRecord.model_validate_json(line) for line in file.read_text().splitlines()] if file.exists() else []


def _run(case: Case, leg: Leg, text: Path, folder: Path, *, attempt: int) -> list[loop.Preparation]:
    plan = case.plan(leg, text)
    meeting = Meeting(plan)
    # One after the other: torch's random state, from which initial weights come, is the whole
    # process's.
    prepared = [
        loop.Preparation(_config(folder, *divmod(rank, leg.ranks), attempt), plan) for rank in range(meeting.size)
    ]

    for each in prepared if case.is_masked else ():
        each.batches, each.evaluation_batches = (
            b and Masked(batches=b) for b in (each.batches, each.evaluation_batches)
        )

    def work(rank: int) -> None:
        status = StageStatus(plan, stage=rank % leg.ranks, replica=rank // leg.ranks, attempt=attempt)
        try:
            loop.run(prepared[rank], meeting.membership(rank), status, StopAfter(status, leg.until))
        except StoppedError:
            assert status.step == leg.until < case.steps, "it stops where it is told to"

    inprocess.run_ranks(work, meeting.size, meeting.baton, on_error=meeting.leave)
    return prepared


def _config(folder: Path, replica: int, stage: int, attempt: int) -> Config:
    return Config(
        plan=folder / "plan.json",
        namespace="default",
        job="job",
        stage=stage,
        replica=replica,
        attempt=attempt,
        rendezvous=NOWHERE,
        metrics_port=0,
        checkpoints=folder / "checkpoints",
        output=folder,
        termination_log=None,
        grace_s=30,
    )


def _checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    shards = (folder / f"step-{step:08d}").glob("*.safetensors")
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def _state(prepared: loop.Preparation) -> dict[str, torch.Tensor]:
    """Return a rank's modules as torch's own state_dict has them, by the names that the unsplit model has for that."""
    return {
        f"layers.{layer.index}.{name}": value
        for layer in prepared.rank.part.layers
        for name, value in layer.module.state_dict().items()
    }
