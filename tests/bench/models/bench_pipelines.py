"""Measures training of the built-in decoder as a pipeline, beside torch's own pipelining and DeepSpeed.

    python tests/bench/models/bench_pipelines.py [--rounds 8] [--shapes 4x1,2x2] [--output FILE.json]

Four processes over gloo, of one thread each: four stages, and two stages x two replicas. All train
one decoder on one text by 1F1B: passes, sums over replicas, a norm that clips, AdamW. Ours counts,
agrees and records as the trainer does; torch's replicas sum gradients where these lie, all at
once; DeepSpeed is the extra `bench`. A round lets each train one step, in an order that
alternates. Memory is the most that a rank's process held in three steps beyond what it did before
it made a layer, in processes of their own for each, the larger of a stage's replicas. Ends with 1
if a peer has a higher throughput (median over rounds), or takes less memory on any stage.
"""

import sys
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

from decoder_players import Losses, Maker, Work, deepspeeds, most_bytes, ours, torchs
from harness import Measured, laid_together, launch, load, parser, take_turns, write

OURS = "ours"
SAME = 1e-4  # of the first step's loss: the same model and text


def players() -> dict[str, Maker]:
    """Return who takes part; DeepSpeed where it is there."""
    found: dict[str, Maker] = {OURS: ours, "torch": torchs}
    return found | ({"DeepSpeed": deepspeeds} if find_spec("deepspeed") else {})


def measure(rank: int, work: Work, rounds: int) -> tuple[dict[str, list], dict[str, float | None]]:
    """One process: train in turns."""
    torch.set_num_threads(1)
    losses = {name: Losses() for name in players()}
    made = {name: make(work, rank, losses[name]) for name, make in players().items()}
    samples = take_turns(made, rounds)
    distributed.barrier()
    return samples, {name: each.first for name, each in losses.items()}


def by_stage(work: Work, name: str, of_ranks: list[int]) -> list[int]:
    """Return each stage's memory; DeepSpeed counts ranks through replicas first, others through stages."""
    stage_of = partial(_of_replicas_first, work) if name == "DeepSpeed" else lambda rank: rank % work.stages
    stages = range(work.stages)
    return [max(each for rank, each in enumerate(of_ranks) if stage_of(rank) == stage) for stage in stages]


def _of_replicas_first(work: Work, rank: int) -> int:
    return rank // work.replicas


def report(work: Work, steps: dict[str, Measured], memory: dict[str, list[int]]) -> bool:
    """Print a shape's table; say whether no peer is better."""
    tokens = work.plan.schedule.sequences * work.replicas * work.plan.data.sequence_length
    print(f"\npp={work.stages} x dp={work.replicas}, {work.blocks} blocks {work.hidden} wide, {work.micro_batches}")
    print("| | step, s, least (median) | tokens/s | processor s a rank | most memory of each stage, MiB |")
    print("|---|---|---|---|---|")
    for name, each in steps.items():
        most = ", ".join(f"{held / 2**20:.0f}" for held in memory[name])
        print(f"| {name} | {each} | {tokens / each.median_s:,.0f} | {each.processor_s:.3f} | {most} |")
    holds = True
    own = steps[OURS].seconds
    for name, each in steps.items():
        if name == OURS:
            continue
        pairs = zip(own, each.seconds, strict=True)
        ratio = median(theirs / mine for mine, theirs in pairs)
        more = [mine > theirs for mine, theirs in zip(memory[OURS], memory[name], strict=True)]
        print(f"throughput by {name}'s: {ratio:.3f}; more memory than {name} on {sum(more)} of {work.stages} stages")
        holds = holds and ratio >= 1 and not any(more)
    return holds


def main() -> int:
    options = parser(__doc__, rounds=8, output="bench-pipelines.json")
    options.add_argument("--shapes", default="4x1,2x2", help="stages x replicas, several with commas")
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--micro-batches", type=int, default=8)
    given = options.parse_args()
    figures, holds = [], []
    print(f"load {load():.1f}; DeepSpeed {'is' if find_spec('deepspeed') else 'is NOT'} here")
    for shape in given.shapes.split(","):
        stages, replicas = map(int, shape.split("x"))
        work = Work(stages=stages, replicas=replicas, hidden=given.hidden, micro_batches=given.micro_batches)
        of_ranks = launch(measure, work, given.rounds, world=work.world)
        first = [loss for _, losses in of_ranks for loss in losses.values() if loss is not None]
        assert max(first) - min(first) < SAME * min(first), f"they do not train the same: {first}"
        steps = laid_together([samples for samples, _ in of_ranks])
        held = {name: launch(most_bytes, work, make, world=work.world) for name, make in players().items()}
        memory = {name: by_stage(work, name, each) for name, each in held.items()}
        holds.append(report(work, steps, memory))
        each = {"work": asdict(work), "steps": {name: asdict(one) for name, one in steps.items()}, "memory": memory}
        figures.append(each)
    write(given.output, {"shapes": figures})
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
