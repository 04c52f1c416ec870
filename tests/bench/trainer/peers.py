"""Other people's pipelines, playing schedules of their own on the same virtual layers.

torch's schedules come with torch. DeepSpeed is the extra `bench`; its pipeline engine knows 1F1B.
Megatron-core is not here: its schedules make tensors on `device="cuda"`, so that on a machine
without a GPU it runs patched or not at all.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import nn
from torch.distributed import pipelining
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from harness import Player
from pipelinejob.schedules import torch_csv
from pipelinejob.schedules.actions import Schedule, folded, looped
from pipelinejob.schedules.names import ScheduleName
from pipelinejob_trainer.models.losses.loss import cross_entropy
from pipelinejob_trainer.models.part import build_part
from support.training.pipelines import CPU, Job

TORCHS_OWN: dict[str, Callable[..., Any]] = {
    ScheduleName.GPIPE: pipelining.ScheduleGPipe,
    ScheduleName.ONE_F_ONE_B: pipelining.Schedule1F1B,
    ScheduleName.INTERLEAVED: pipelining.ScheduleInterleaved1F1B,
    ScheduleName.LOOPED_BFS: pipelining.ScheduleLoopedBFS,
    "InterleavedZeroBubble": pipelining.ScheduleInterleavedZeroBubble,
    ScheduleName.ZB_V: pipelining.ScheduleZBVZeroBubble,
    ScheduleName.DUALPIPE_V: pipelining.ScheduleDualPipeV,
}
_V_SHAPED = {pipelining.ScheduleZBVZeroBubble, pipelining.ScheduleDualPipeV}
_SINGLE = {pipelining.ScheduleGPipe, pipelining.Schedule1F1B}


def torchs_own(name: str, job: Job, rank: int) -> Player:
    """Return torch's own schedule of a name; the job's schedule says where its stages stand."""
    schedule = _torchs_own(name, job, rank)
    dataset, is_first, is_last = job.dataset(), job.built.routes[0][0] == rank, job.built.routes[0][-1] == rank

    def step(number: int) -> None:
        pairs = [dataset.batch(number, 0, k) for k in range(job.micro_batches)] if is_first or is_last else []
        schedule.step(
            arg_mbs=[(each.tokens,) for each in pairs] if is_first else [()] * job.micro_batches,
            target_mbs=[each.targets for each in pairs] if is_last else None,
            losses=[],
            return_outputs=False,
        )

    return Player(step=step)


def torchs_list(name: str, job: Job, rank: int) -> Schedule:
    """Return the list that torch's own schedule plays."""
    schedule = _torchs_own(name, job, rank)
    with NamedTemporaryFile("r") as file:
        schedule._dump_csv(file.name, format="compute_only")
        return torch_csv.read(file.read())


def torchs_route(name: str, num_ranks: int) -> tuple[int, ...]:
    """Return where torch's own schedule puts its stages."""
    kind = TORCHS_OWN[name]
    return folded(num_ranks) if kind in _V_SHAPED else looped(num_ranks, 1 if kind in _SINGLE else 2)


def _torchs_own(name: str, job: Job, rank: int) -> Any:
    cut, held = job.cut(), job.built.held_by(rank)
    part = build_part(job.model, job.data, stretches=[cut[each.stage] for each in held], seed=job.seed)
    stages = [
        pipelining.PipelineStage(
            nn.Sequential(*(layer.module for layer in layers)), each.stage, job.built.num_stages, CPU
        )
        for each, layers in zip(held, part.chunks, strict=True)
    ]
    kind = TORCHS_OWN[name]
    is_single = isinstance(kind, type) and issubclass(kind, PipelineScheduleSingle)
    return kind(stages[0] if is_single else stages, n_microbatches=job.micro_batches, loss_fn=cross_entropy)


def has_deepspeed() -> bool:
    return find_spec("deepspeed") is not None


def deepspeed(job: Job, rank: int) -> Player:
    """Return DeepSpeed's pipeline engine, one stage a rank; its step includes its optimiser's."""
    engine, dataset = _engine(job), job.dataset()

    def batches(number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (dataset.batch(number, 0, k)[:2] for k in range(job.micro_batches))

    return Player(step=lambda number: engine.train_batch(batches(number)))


def _engine(job: Job) -> Any:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(torch.distributed.get_rank())}
    cuts = job.cut()
    part = build_part(job.model, job.data, stretches=cuts, seed=job.seed)
    stages = [nn.Sequential(*(layer.module for layer in layers)) for layers in part.chunks]
    with redirect_stdout(StringIO()):
        import deepspeed as library
        from deepspeed.pipe import PipelineModule

        library.utils.logger.setLevel(logging.ERROR)
        library.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        module = PipelineModule(
            layers=stages, num_stages=len(stages), loss_fn=cross_entropy, partition_method="uniform"
        )
        engine, *_ = library.initialize(
            model=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.0),
            config={
                "train_batch_size": job.micro_batches,
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": job.micro_batches,
                "steps_per_print": 10**9,
            },
        )
    return engine
