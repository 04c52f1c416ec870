"""Measures two stages x two replicas that shard their state, beside torch's own pipelining with FSDP2.

    python tests/bench/trainer/bench_sharding.py [--rounds 8] [--output FILE.json]

Four processes over gloo, of one thread each. Both train one decoder on one text by 1F1B: forward and backward passes,
reduction over replicas, a norm that clips, AdamW. Ours has `sharding: optimizer` (ZeRO-1), or `full`, which gathers a
layer whenever a pass comes to it, and counts, agrees and records as the trainer does; theirs has `fully_shard` on each
layer, without resharding behind a forward pass, which gathers parameters once a step, or with it; and a norm over a
stage's own replicas alone. A round lets each train one step, in an order that alternates.
Memory is the most that a rank's process held in three steps beyond what it did before it made a layer, in processes of
their own for each. Ends with 1 if either of ours is slower than its like of theirs (median of rounds), or takes more
memory on any rank.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import pipelining
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from harness import TEXT, Player, laid_together, launch, load, parser, take_turns, write
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
from support.training.pipelines import CPU

STAGES, REPLICAS = 2, 2
CLIP_NORM = 1.0
MEMORY_STEPS = 3
SAME = 1e-4  # of the first step's loss: the same model and text


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured; handed to every process."""

    rounds: int
    hidden: int
    micro_batches: int

    @property
    def plan(self) -> Plan:
        from support.training.gangs import plan  # where that lies, harness says

        heads = self.hidden // 32
        sizes = DecoderModel(num_layers=6, hidden_size=self.hidden, num_heads=heads, feed_forward_size=3 * self.hidden)
        return plan(
            4,
            4,
            replicas=REPLICAS,
            model=Model(decoder=sizes),
            data=Data(paths=(str(TEXT),), sequence_length=128),
            schedule=ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=self.micro_batches, micro_batch_size=2),
            training={"steps": 10_000, "learning_rate": 1e-3, "clip_norm": CLIP_NORM},
        )


@dataclass(slots=True)
class _Losses:
    """What the first step of each gave, on a rank that knows."""

    first: float | None = None

    def note(self, loss: float) -> None:
        self.first = loss if self.first is None else self.first


def ours(options: Options, rank: int, losses: _Losses, *, sharding: Sharding) -> Player:
    """Return a rank of this project's, as the trainer's loop plays it, checkpoints and reports aside."""
    made = options.plan
    degrees = made.parallelism.model_copy(update={"sharding": sharding})
    wanted = made.model_copy(update={"parallelism": degrees})
    replica, stage = divmod(rank, STAGES)
    groups = process_groups(pipeline=STAGES, data=REPLICAS)
    held = build_rank(wanted, index=stage, replica=replica, device=CPU)
    gang = Gang(groups, num_stages=STAGES)
    exchange = sums_over_groups(held.layout.all_shares(held.part))
    updates = Updates(held, exchange)
    recorder = Recorder(replica=replica, stage=stage, device=CPU)
    rows, routes = wanted.schedule.micro_batch_sizes, held.layout.schedule.routes
    runtime = held.runtime(
        links=connect(groups, routes=routes, rows=rows, data=REPLICAS, device=CPU),
        sum_over=exchange,
        recorder=recorder,
        batches=_batches(wanted),
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


def torchs(options: Options, rank: int, losses: _Losses, *, reshards: bool) -> Player:
    """Return torch's pipelining by 1F1B of layers that FSDP2 shards."""
    wanted = options.plan
    replica, stage = divmod(rank, STAGES)
    mesh = init_device_mesh("cpu", (REPLICAS, STAGES), mesh_dim_names=("data", "pipeline"))
    (cut,) = wanted.stages[stage].chunks
    (layers,) = build_part(wanted.model, wanted.data, stretches=[cut], seed=wanted.training.seed).chunks
    module = nn.Sequential(*(layer.module for layer in layers))
    for layer in module:
        fully_shard(layer, mesh=mesh["data"], reshard_after_forward=reshards)
    fully_shard(module, mesh=mesh["data"], reshard_after_forward=False)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95))
    micro_batches, batches = wanted.schedule.micro_batches or 0, _batches(wanted)
    schedule = pipelining.Schedule1F1B(
        pipelining.PipelineStage(module, stage, STAGES, CPU, group=mesh.get_group("pipeline")),
        n_microbatches=micro_batches,
        loss_fn=cross_entropy,
    )

    def step(number: int) -> None:
        read = [batches.batch(number, replica, k) for k in range(micro_batches)]
        found: list[torch.Tensor] = []
        schedule.step(
            arg_mbs=[(each.tokens,) for each in read] if stage == 0 else [()] * micro_batches,
            target_mbs=[each.targets for each in read] if stage == STAGES - 1 else None,
            losses=found,
            return_outputs=False,
        )
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if found:
            mean = torch.stack(found).mean().detach()
            distributed.all_reduce(mean, group=mesh.get_group("data"))
            losses.note(float(mean) / REPLICAS)

    return Player(step=step)


PLAYERS: dict[str, Callable[[Options, int, _Losses], Player]] = {
    "ours, optimizer": partial(ours, sharding=Sharding.OPTIMIZER),
    "ours, full": partial(ours, sharding=Sharding.FULL),
    "torch with FSDP2": partial(torchs, reshards=False),
    "torch with FSDP2, resharding": partial(torchs, reshards=True),
}
PAIRS = (("ours, optimizer", "torch with FSDP2"), ("ours, full", "torch with FSDP2, resharding"))


def _batches(wanted: Plan) -> Any:
    return open_dataset(wanted.data, schedule=wanted.schedule, replicas=REPLICAS, seed=wanted.training.seed)


def measure(rank: int, options: Options) -> tuple[dict[str, list], dict[str, float | None]]:
    """One process: train in turns."""
    torch.set_num_threads(1)
    losses = {name: _Losses() for name in PLAYERS}
    players = {name: make(options, rank, losses[name]) for name, make in PLAYERS.items()}
    samples = take_turns(players, options.rounds)
    distributed.barrier()
    return samples, {name: each.first for name, each in losses.items()}


def memory(rank: int, options: Options, name: str) -> int:
    """Return the most bytes that a rank held beyond what it did before it made a layer."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most so far
    before = _status("VmRSS")
    player = PLAYERS[name](options, rank, _Losses())
    for number in range(MEMORY_STEPS):
        player.step(number + 1)
    distributed.barrier()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> int:
    options = parser(__doc__, rounds=8, output="bench-sharding.json")
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--micro-batches", type=int, default=4)
    given = options.parse_args()
    chosen = Options(rounds=given.rounds, hidden=given.hidden, micro_batches=given.micro_batches)
    before = load()
    of_ranks = launch(measure, chosen, world=STAGES * REPLICAS)
    first = [loss for loss in of_ranks[STAGES - 1][1].values() if loss is not None]
    assert len(first) == len(PLAYERS)
    assert max(first) - min(first) < SAME * min(first), f"they do not train the same: {first}"
    steps = laid_together([samples for samples, _ in of_ranks])
    held = {name: launch(memory, chosen, name, world=STAGES * REPLICAS) for name in PLAYERS}
    print(f"pp={STAGES} x dp={REPLICAS}, {chosen}; load before {before:.1f}; steps in s, least (median)")
    print("| | step | processor s a rank | most memory of each rank, MiB |")
    print("|---|---|---|---|")
    for name, each in steps.items():
        most = ", ".join(f"{of_rank / 2**20:.0f}" for of_rank in held[name])
        print(f"| {name} | {each} | {each.processor_s:.3f} | {most} |")
    ratios = {}
    for own, other in PAIRS:
        pairs = zip(steps[own].seconds, steps[other].seconds, strict=True)
        ratios[own] = median(theirs / mine for mine, theirs in pairs)
        print(f"throughput, {own} by {other}: {ratios[own]:.3f}")
    more = [mine > theirs for pair in PAIRS for mine, theirs in zip(*(held[name] for name in pair), strict=True)]
    figures = {"options": asdict(chosen), "steps": {name: asdict(each) for name, each in steps.items()}, "memory": held}
    write(given.output, figures | {"ratios": ratios})
    return int(min(ratios.values()) < 1 or any(more))


if __name__ == "__main__":
    sys.exit(main())
