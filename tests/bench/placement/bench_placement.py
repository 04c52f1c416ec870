"""Placements of ours and of the peers, judged by the same prices and the same room.

    python tests/bench/placement/bench_placement.py [--seeds 100] [--first 0] [--certify 100] [--only TEXT]
        [--output FILE.json]

Three fabrics, each with seeded occupancies; jobs of 4 to 64 stages, with and without data
parallelism, alike and not. For every occupancy: what the step gets longer by, and the largest next
job that one domain of each level still takes. Ends with 1 if a peer is better in one and not worse
in the other anywhere, if we refuse what a peer places, or if a solver proves a better placement on
a fabric that is small enough for it.

The peers are models of the algorithms that they document (`peer_*.py`); the first table holds them
against what the peers themselves did on the anchors' fabric.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[2]))

from anchor_cases import anchor_rows
from anchor_losses import loss_rows
from judge import Verdict, judge
from proof import Proof, prove
from schedulers import OURS, ours, peers
from support.plans.placement_fabrics import Fabric, all_three, small_ones
from support.plans.placement_jobs import JOBS, JobKind, alike, ends_unlike, prices
from world import World

SMALL_JOBS = (
    JobKind("PP 4", 4),
    JobKind("PP 8", 8),
    JobKind("PP 6, ends unlike", 6, kinds=ends_unlike),
    JobKind("PP 4 x DP 2", 4, 2, kinds=alike),
    JobKind("PP 3 x DP 3", 3, 3, kinds=alike),
)


@dataclass
class Row:
    """All occupancies of one fabric and job, by who placed."""

    fabric: str
    job: str
    levels: list[str]
    step_s: float
    seeds: range
    verdicts: dict[str, list[Verdict | None]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def faults(self) -> Iterable[str]:
        """Say where a peer did better."""
        for mine in OURS:
            for who, theirs in self.verdicts.items():
                if who not in OURS:
                    for seed, own, other in zip(self.seeds, self.verdicts[mine], theirs, strict=True):
                        if other is not None and (own is None or other.dominates(own)):
                            yield f"{self.fabric}, {self.job}, seed {seed}: {who} {other} beats {mine} {own}"


def measure(fabric: Fabric, job: JobKind, seeds: range) -> Row:
    """Place one job on every occupancy of a fabric, by everybody."""
    costs = prices(job, fabric)
    levels = [level.name for level in fabric.topology.levels[:-1]]
    demands = job.demands(fabric)
    row = Row(fabric=fabric.name, job=job.title, levels=levels, step_s=costs.step_s or 0.0, seeds=seeds)
    everybody = {**{name: ours(objective) for name, objective in OURS.items()}, **peers(len(levels))}
    for who, scheduler in everybody.items():
        began, verdicts = time.process_time(), []
        for seed in seeds:
            world = World(topology=fabric.topology, nodes=fabric.occupied(seed))
            chosen = scheduler(world, demands, costs, seed)
            verdicts.append(None if chosen is None else judge(world, demands, chosen, costs))
        row.verdicts[who] = verdicts
        row.seconds[who] = (time.process_time() - began) / len(seeds)
    return row


def shown(row: Row) -> str:
    """Write the row as a table."""
    placed = [index for index, verdict in enumerate(row.verdicts["ours, auto"]) if verdict is not None]
    room = f"{len(placed)} of {len(row.verdicts['ours, auto'])} occupancies have room"
    lines = [
        f"\n{row.fabric}, {row.job}: step {row.step_s * 1e3:.1f} ms on the closest links; {room}",
        f"  {'':24}{'step longer by':>16}{'crossings: ' + ' / '.join(row.levels):>30}{'room left':>18}",
    ]
    for who, verdicts in row.verdicts.items():
        own = [verdict for index in placed if (verdict := verdicts[index]) is not None]
        if not own:
            lines.append(f"  {who:24}{'places none of them':>16}")
            continue
        longer = f"{100 * mean(each.penalty_s for each in own) / row.step_s:.2f} %"
        crossed = " / ".join(f"{mean(each.crossings[depth] for each in own):.2f}" for depth in range(len(row.levels)))
        room = " / ".join(f"{mean(each.room[depth] for each in own):.1f}" for depth in range(len(row.levels)))
        note = f"   (places {len(own)} of {len(placed)})" if len(own) < len(placed) else ""
        lines.append(f"  {who:24}{longer:>16}{crossed:>30}{room:>18}{note}")
    return "\n".join(lines)


def certified(seeds: int, pool: ProcessPoolExecutor) -> list[str]:
    """Hold placements on small fabrics against proofs; print how many, and give the faults."""
    faults: list[str] = []
    for fabric in small_ones():
        for job in SMALL_JOBS:
            costs = prices(job, fabric)
            proofs: list[Proof] = list(pool.map(partial(prove, fabric, job, costs), range(seeds)))
            wrong = [each for each in proofs if each.fault]
            rooms = sum(each.has_room for each in proofs)
            print(f"  {fabric.name}, {job.title}: {rooms - len(wrong)} of {rooms} proved optimal")
            faults += [f"{fabric.name}, {job.title}, seed {each.seed}: {each.fault}" for each in wrong]
    return faults


def dumped(row: Row) -> dict[str, object]:
    """Return a row as JSON."""
    return {
        "fabric": row.fabric,
        "job": row.job,
        "levels": row.levels,
        "step_s": row.step_s,
        "seconds": row.seconds,
        "verdicts": {
            who: [v and {"penalty_s": v.penalty_s, "crossings": v.crossings, "room": v.room} for v in verdicts]
            for who, verdicts in row.verdicts.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; give the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="occupancies of each fabric")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first of them")
    parser.add_argument("--certify", type=int, default=100, help="occupancies of each small fabric that are proved")
    parser.add_argument("--only", default="", help="just the rows whose 'fabric, job' has this in it, and no proofs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)

    print("The anchors' 64 nodes: models of the peers beside what the peers did, and ourselves")
    faults = [*anchor_rows(), *loss_rows()]
    rows: list[Row] = []
    with ProcessPoolExecutor(options.workers) as pool:
        cases = [
            (fabric, job) for fabric in all_three() for job in JOBS if options.only in f"{fabric.name}, {job.title}"
        ]
        if not cases:
            parser.error(f"--only: no 'fabric, job' has {options.only!r} in it")
        for row in pool.map(measure, *zip(*cases, strict=True), [seeds] * len(cases)):
            print(shown(row), flush=True)
            faults += row.faults
            rows.append(row)
        if not options.only:
            print("\nProofs on small fabrics")
            faults += certified(options.certify, pool)
    if options.output:
        options.output.write_text(json.dumps([dumped(row) for row in rows], indent=1))
    print(f"\n{len(faults)} faults" + "".join(f"\n  {fault}" for fault in faults[:40]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
