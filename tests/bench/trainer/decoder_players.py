"""Who trains one decoder on one text, as a gang of processes: this project's trainer, torch's pipelining, DeepSpeed.

All cut it alike and play 1F1B: forward and backward passes, sums over replicas, a norm that clips,
AdamW.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import pipelining
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from harness import TEXT, Player
from pipelinejob.contract.plan import Plan
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Data, DecoderModel, Model, ScheduleSpec, Sharding
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.process_groups import connect, process_groups
from pipelinejob_trainer.data.dataset import open_dataset
from pipelinejob_trainer.models.losses.loss import cross_entropy
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.runtime.rank import build_rank
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from pipelinejob_trainer.training import totals
from pipelinejob_trainer.training.updates import Updates
from support.training.gangs import plan
from support.training.pipelines import CPU

CLIP_NORM = 1.0
RATE = 1e-3
ROWS = 2
MEMORY_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained, on how many stages and replicas; handed to every process."""

    stages: int
    replicas: int
    hidden: int
    micro_batches: int
    blocks: int = 6

    @property
    def world(self) -> int:
        return self.stages * self.replicas

    @property
    def plan(self) -> Plan:
        heads = self.hidden // 32
        sizes = DecoderModel(
            num_layers=self.blocks, hidden_size=self.hidden, num_heads=heads, feed_forward_size=3 * self.hidden
        )
        return plan(
            *[(self.blocks + 2) // self.stages] * self.stages,
            replicas=self.replicas,
            model=Model(decoder=sizes),
            data=Data(paths=(str(TEXT),), sequence_length=128),
            schedule=ScheduleSpec(
                name=ScheduleName.ONE_F_ONE_B, micro_batches=self.micro_batches, micro_batch_size=ROWS
            ),
            training={"steps": 10_000, "learning_rate": RATE, "clip_norm": CLIP_NORM},
        )

    def batches(self) -> Any:
        made = self.plan
        return open_dataset(made.data, schedule=made.schedule, replicas=self.replicas, seed=made.training.seed)


@dataclass(slots=True)
class Losses:
    """What the first step of each gave, on a rank that knows."""

    first: float | None = None

    def note(self, loss: float) -> None:
        self.first = loss if self.first is None else self.first


Maker = Callable[[Work, int, Losses], Player]


def ours(work: Work, rank: int, losses: Losses, *, sharding: Sharding = Sharding.NONE) -> Player:
    """Return a rank of this project's, as the trainer's loop plays it, checkpoints and reports aside."""
    made = work.plan
    degrees = made.parallelism.model_copy(update={"sharding": sharding})
    wanted = made.model_copy(update={"parallelism": degrees})
    replica, stage = divmod(rank, work.stages)
    groups = process_groups(pipeline=work.stages, data=work.replicas)
    held = build_rank(wanted, index=stage, replica=replica, device=CPU)
    gang = Gang(groups, num_stages=work.stages)
    exchange = sums_over_groups(held.layout.all_shares(held.part))
    updates = Updates(held, exchange)
    recorder = Recorder(replica=replica, stage=stage, device=CPU)
    rows, routes = wanted.schedule.micro_batch_sizes, held.layout.schedule.routes
    runtime = held.runtime(
        links=connect(groups, routes=routes, rows=rows, data=work.replicas, device=CPU),
        sum_over=exchange,
        recorder=recorder,
        batches=work.batches(),
    )

    def step(number: int) -> None:
        recorder.restart()
        updates.begin(number)
        result = runtime.run_step(number)
        mine = totals.of_rank(result, updates.squared_norm(), is_stop_requested=False, num_changes=0, has_written=False)
        total = totals.over_all(gang, mine)
        updates.end(total)
        losses.note(total.loss)

    return Player(step=step)


def torchs(work: Work, rank: int, losses: Losses, *, shards: bool = False, reshards: bool = False) -> Player:
    """Return torch's pipelining; replicas sum gradients where these lie, all at once, or FSDP2 does if it `shards`."""
    wanted, stages = work.plan, work.stages
    replica, stage = divmod(rank, stages)
    mesh = init_device_mesh("cpu", (work.replicas, stages), mesh_dim_names=("data", "pipeline"))
    (cut,) = wanted.stages[stage].chunks
    (layers,) = build_part(wanted.model, wanted.data, stretches=[cut], seed=wanted.training.seed).chunks
    module: nn.Module = nn.Sequential(*(layer.module for layer in layers))
    if shards:
        for layer in module.children():
            fully_shard(layer, mesh=mesh["data"], reshard_after_forward=reshards)
        fully_shard(module, mesh=mesh["data"], reshard_after_forward=False)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95))
    micro_batches, batches = work.micro_batches, work.batches()
    schedule = pipelining.Schedule1F1B(
        pipelining.PipelineStage(module, stage, stages, CPU, group=mesh.get_group("pipeline")),
        n_microbatches=micro_batches,
        loss_fn=cross_entropy,
    )

    def step(number: int) -> None:
        read = [batches.batch(number, replica, k) for k in range(micro_batches)]
        found: list[torch.Tensor] = []
        schedule.step(
            arg_mbs=[(each.tokens,) for each in read] if stage == 0 else [()] * micro_batches,
            target_mbs=[each.targets for each in read] if stage == stages - 1 else None,
            losses=found,
            return_outputs=False,
        )
        if not shards and work.replicas > 1:
            _averaged(parameters, mesh.get_group("data"), work.replicas)
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if found:
            mean = torch.stack(found).mean().detach()
            distributed.all_reduce(mean, group=mesh.get_group("data"))
            losses.note(float(mean) / work.replicas)

    return Player(step=step)


def _averaged(parameters: list[nn.Parameter], group: distributed.ProcessGroup, replicas: int) -> None:
    gradients = [each.grad for each in parameters if each.grad is not None]
    for sums in [distributed.all_reduce(each, group=group, async_op=True) for each in gradients]:
        sums.wait()
    for each in gradients:
        each.div_(replicas)


class _Layers(nn.Sequential):
    """A stage's layers, made by the rank that holds them."""

    def __init__(self, made: Plan, stage: int) -> None:
        (cut,) = made.stages[stage].chunks
        (layers,) = build_part(made.model, made.data, stretches=[cut], seed=made.training.seed).chunks
        super().__init__(*(layer.module for layer in layers))


def deepspeeds(work: Work, rank: int, losses: Losses) -> Player:
    """Return DeepSpeed's pipeline engine; its ranks count replicas first."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    wanted, batches = work.plan, work.batches()
    library = deepspeed_library()
    from deepspeed.pipe import LayerSpec, PipelineModule

    with redirect_stdout(StringIO()):
        library.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        module = PipelineModule(
            layers=[LayerSpec(_Layers, wanted, stage) for stage in range(work.stages)],
            num_stages=work.stages,
            loss_fn=cross_entropy,
            partition_method="uniform",
            activation_checkpoint_interval=0,
        )
        engine, *_ = library.initialize(
            model=module,
            optimizer=torch.optim.AdamW(module.parameters(), lr=RATE, betas=(0.9, 0.95)),
            config={
                "train_micro_batch_size_per_gpu": ROWS,
                "gradient_accumulation_steps": work.micro_batches,
                "train_batch_size": ROWS * work.micro_batches * work.replicas,
                "gradient_clipping": CLIP_NORM,
                "steps_per_print": 10**9,
            },
        )
    replica = engine.grid.get_data_parallel_rank()

    def read(number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (batches.batch(number, replica, k)[:2] for k in range(work.micro_batches))

    return Player(step=lambda number: losses.note(float(engine.train_batch(read(number)))))


def deepspeed_library() -> Any:
    """Import it in silence, for processors."""
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    with redirect_stdout(StringIO()):
        import deepspeed as library

    library.utils.logger.setLevel(logging.ERROR)
    return library


def most_bytes(rank: int, work: Work, make: Maker) -> int:
    """Return the most bytes that a rank's process held beyond what it did before it made a layer."""
    torch.set_num_threads(1)
    if make is deepspeeds:
        deepspeed_library()  # what is imported counts for nobody
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most so far
    before = _status("VmRSS")
    player = make(work, rank, Losses())
    for number in range(MEMORY_STEPS):
        player.step(number + 1)
    distributed.barrier()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
