"""Measures two stages x two replicas that shard their state, beside torch's own pipelining with FSDP2.

    python tests/bench/trainer/bench_sharding.py [--rounds 8] [--output FILE.json]

Four processes over gloo, of one thread each. Both train one decoder on one text by 1F1B: forward
and backward passes, sums over replicas, a norm that clips, AdamW. Ours has `sharding: optimizer`
(ZeRO-1), or `full`, which gathers a layer whenever a pass comes to it, and counts, agrees and
records as the trainer does; theirs has `fully_shard` on each layer, without resharding behind a
forward pass, which gathers parameters once a step, or with it; and a norm over a stage's own
replicas alone. A round lets each train one step, in an order that alternates. Memory is the most
that a rank's process held in three steps beyond what it did before it made a layer, in processes
of their own for each. Ends with 1 if either of ours is slower than its like of theirs (median of
rounds), or takes more memory on any rank.
"""

import sys
from dataclasses import asdict
from functools import partial
from statistics import median

import torch
from torch import distributed

from decoder_players import Losses, Maker, Work, most_bytes, ours, torchs
from harness import laid_together, launch, load, parser, take_turns, write
from pipelinejob.spec.job import Sharding

STAGES, REPLICAS = 2, 2
SAME = 1e-4  # of the first step's loss: the same model and text
PLAYERS: dict[str, Maker] = {
    "ours, optimizer": partial(ours, sharding=Sharding.OPTIMIZER),
    "ours, full": partial(ours, sharding=Sharding.FULL),
    "torch with FSDP2": partial(torchs, shards=True),
    "torch with FSDP2, resharding": partial(torchs, shards=True, reshards=True),
}
PAIRS = (("ours, optimizer", "torch with FSDP2"), ("ours, full", "torch with FSDP2, resharding"))


def measure(rank: int, work: Work, rounds: int) -> tuple[dict[str, list], dict[str, float | None]]:
    """One process: train in turns."""
    torch.set_num_threads(1)
    losses = {name: Losses() for name in PLAYERS}
    players = {name: make(work, rank, losses[name]) for name, make in PLAYERS.items()}
    samples = take_turns(players, rounds)
    distributed.barrier()
    return samples, {name: each.first for name, each in losses.items()}


def main() -> int:
    options = parser(__doc__, rounds=8, output="bench-sharding.json")
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--micro-batches", type=int, default=4)
    given = options.parse_args()
    work = Work(stages=STAGES, replicas=REPLICAS, hidden=given.hidden, micro_batches=given.micro_batches)
    before = load()
    of_ranks = launch(measure, work, given.rounds, world=work.world)
    first = [loss for loss in of_ranks[STAGES - 1][1].values() if loss is not None]
    assert len(first) == len(PLAYERS)
    assert max(first) - min(first) < SAME * min(first), f"they do not train the same: {first}"
    steps = laid_together([samples for samples, _ in of_ranks])
    held = {name: launch(most_bytes, work, make, world=work.world) for name, make in PLAYERS.items()}
    print(f"pp={STAGES} x dp={REPLICAS}, {work}; load before {before:.1f}; steps in s, least (median)")
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
    figures = {"work": asdict(work), "steps": {name: asdict(each) for name, each in steps.items()}, "memory": held}
    write(given.output, figures | {"ratios": ratios})
    return int(min(ratios.values()) < 1 or any(more))


if __name__ == "__main__":
    sys.exit(main())
