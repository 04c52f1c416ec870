"""How long one decision takes: a job of 64 stages on 1,024, 10,000 and 100,000 nodes of 8 GPUs.

    python tests/bench/placement/bench_placement_speed.py [--rounds 7] [--output FILE.json]

A decision is what an admission does with nodes that it has read: the tree from their labels, then
a node for every stage by price, at half occupancy. The jobs: like stages, unlike ends, eight
replicas of eight stages; unlike ends with room for two stages on a node; and stages of which each
half may go to one type of nodes only, where the types stand mixed in every leaf, and where every
other leaf is of the one type. Seconds are the processor's, and do not depend on what else runs.
What pricing a plan takes, once for a plan and not for a decision, is shown beside. Ends with 1 if
a median is above its bound (50 ms, 1 s, 10 s), or if cost grows faster than nodes times their
logarithm.
"""

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from anchor_cases import two_types
from pipelinejob.fabric.topology import Topology
from pipelinejob.placement.place import place
from support.plans.placement_fabrics import H100, Fabric, described
from support.plans.placement_jobs import JobKind, ends_unlike, prices

NodesOfKind = dict[str, frozenset[str]]


def mixed(fabric: Fabric) -> NodesOfKind:
    """Return the nodes of two types that stand side by side: those of even and of odd number."""
    return _halves(fabric, {node.name for node in fabric.nodes if int(node.name.removeprefix("n")) % 2 == 0})


def by_leaf(fabric: Fabric) -> NodesOfKind:
    """Return the nodes of two types that have leaves of their own: every other one."""
    paths = fabric.topology.paths
    even = set(sorted({path[:-1] for path in paths.values()})[::2])
    return _halves(fabric, {name for name, path in paths.items() if path[:-1] in even})


def _halves(fabric: Fabric, even: set[str]) -> NodesOfKind:
    return {"even": frozenset(even), "odd": frozenset(node.name for node in fabric.nodes) - even}


@dataclass(frozen=True, slots=True)
class Case:
    """A job, and how nodes are divided where its stages may not go to all."""

    job: JobKind
    divided: Callable[[Fabric], NodesOfKind] | None = None


BOUNDS_S = {1_024: 0.05, 10_000: 1.0, 100_000: 10.0}
LEAF = 32
JOBS = (
    Case(JobKind("PP 64", 64, is_large=True)),
    Case(JobKind("PP 64, ends unlike", 64, kinds=ends_unlike, is_large=True)),
    Case(JobKind("PP 8 x DP 8", 8, 8)),
    Case(JobKind("PP 64, two a node, ends unlike", 64, kinds=ends_unlike, ranks_per_node=2, is_large=True)),
    Case(JobKind("PP 64, two types, mixed", 64, kinds=two_types, is_large=True), mixed),
    Case(JobKind("PP 64, two types, leaf by leaf", 64, kinds=two_types, is_large=True), by_leaf),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One job on so many nodes."""

    job: str
    num_nodes: int
    tree_s: list[float]
    decision_s: list[float]  # the tree's included
    pricing_s: float

    @property
    def median_s(self) -> float:
        return median(self.decision_s)

    @property
    def is_in_time(self) -> bool:
        return self.median_s < BOUNDS_S[self.num_nodes]

    def __str__(self) -> str:
        spread = f"{1e3 * min(self.decision_s):.0f} to {1e3 * max(self.decision_s):.0f}"
        return (
            f"{self.job:32}{self.num_nodes:>9,} nodes: {1e3 * self.median_s:>8.1f} ms ({spread}), "
            f"tree {1e3 * median(self.tree_s):.1f}; bound {1e3 * BOUNDS_S[self.num_nodes]:.0f}; "
            f"planned and priced in {self.pricing_s:.2f} s" + ("" if self.is_in_time else "   TOO SLOW")
        )


def cluster(num_nodes: int) -> Fabric:
    """Return so many nodes, in leaves of 32, some of unlike size, in superpods of about 1,000."""
    superpods = max(2, num_nodes // 1_024)
    each, rest = divmod(num_nodes, superpods)
    leaves = [LEAF + offset for _ in range(each // LEAF // 4) for offset in (0, 4, -8, 4)]
    leaves += [left] if (left := each - sum(leaves)) > 0 else []
    description = {
        "levels": ["superpod", "leaf"],
        "links": {"cluster": "roce-100", "superpod": "roce-400", "leaf": "infiniband-ndr"},
        "node": {"product": H100, "gpus": 8},
        "groups": [
            {"superpod": [f"S{index}" for index in range(superpods)], "leaf": leaves},
            *([{"superpod": "S0", "leaf": [rest]}] if rest else []),
        ],
    }
    return described(f"{num_nodes} nodes", description, busy=0.5)


def decide(case: Case, fabric: Fabric, rounds: int) -> Decided:
    """Decide several times, each over another occupancy."""
    job, nodes_of_kind = case.job, case.divided and case.divided(fabric)
    began = time.process_time()
    costs, demands = prices(job, fabric), job.demands(fabric, nodes_of_kind)
    pricing_s = time.process_time() - began
    tree_s, decision_s = [], []
    for seed in range(rounds):
        nodes = fabric.occupied(seed)
        gc.collect()
        began = time.process_time()
        topology = Topology.of(nodes, profiles=fabric.profiles)
        read = time.process_time()
        place(demands, topology, nodes, prices=costs)
        tree_s.append(read - began)
        decision_s.append(time.process_time() - began)
    return Decided(
        job=job.title, num_nodes=len(fabric.nodes), tree_s=tree_s, decision_s=decision_s, pricing_s=pricing_s
    )


def exponent(found: Sequence[Decided]) -> float:
    """Return the slope of seconds over nodes times their logarithm, both on logarithmic scales: at most 1 is wanted."""
    first, last = found[0], found[-1]
    growth = math.log(last.median_s / first.median_s)
    return growth / math.log(last.num_nodes * math.log(last.num_nodes) / (first.num_nodes * math.log(first.num_nodes)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; give the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)

    fabrics = [cluster(num_nodes) for num_nodes in BOUNDS_S]
    found: list[Decided] = []
    is_good = True
    for case in JOBS:
        of_job = []
        for fabric in fabrics:
            of_job.append(decide(case, fabric, options.rounds))
            print(of_job[-1], flush=True)
        slope = exponent(of_job)
        print(f"{'':32}grows as (nodes * log nodes) to the power of {slope:.2f}")
        is_good = is_good and slope <= 1 and all(each.is_in_time for each in of_job)
        found += of_job
    if options.output:
        options.output.write_text(json.dumps([asdict(each) for each in found], indent=1))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
