"""The 64 nodes that the peers themselves were run on: their models beside what they did, and what we do.

What was measured is quoted from the anchors (`operator.md`, section 5.2): one API server 1.36.3,
nodes without kubelets, names shuffled by seed 1. Crossings count leaf by leaf, and `+ n` those
that leave the superpod. The anchors do not say which nodes were of which of the two types; here
those of an even number are of the one, of an odd number of the other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean

import peer_koordinator
import peer_kueue
import peer_unranked
from judge import Verdict, judge
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.numbering import BoundPod, number
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import crossing_prices
from pipelinejob.spec.network.objective import Objective
from support.plans.placement_fabrics import Fabric, anchors, anchors_occupied
from support.plans.placement_jobs import JobKind, ends_unlike
from world import Chosen, World, groups_alike

SEEDS = range(8)


def two_types(num_stages: int) -> Sequence[str]:
    """Return a half of each type."""
    return ["even"] * (num_stages // 2) + ["odd"] * (num_stages - num_stages // 2)


Run = Callable[[World, list[Demand], int], Chosen | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the anchors' table."""

    title: str
    job: JobKind
    is_busy: bool
    measured: dict[str, str]
    wanted: dict[str, tuple[float, float]]  # of ourselves: mean crossings of leaves, and of superpods, at most
    measured_late: dict[str, str] = field(default_factory=dict)  # with stages numbered after pods were bound
    has_types: bool = False
    same_room_as_kueue: bool = False


RUNS: dict[str, Run] = {
    "Kueue": lambda world, demands, _: peer_kueue.place(world, [demands], level=2),
    "Kueue, required": lambda world, demands, _: peer_kueue.place(
        world, groups_alike(demands), level=1, is_required=True
    ),
    "Kueue, preferred": lambda world, demands, _: peer_kueue.place(world, groups_alike(demands), level=2),
    "Kueue, PodSet a stage": lambda world, demands, _: peer_kueue.place(
        world, [[demand] for demand in demands], level=1, is_required=True
    ),
    "Koordinator": lambda world, demands, _: peer_koordinator.place(world, demands, is_padded=True),
    "Koordinator, as named": lambda world, demands, _: peer_koordinator.place(world, demands, is_padded=False),
    "Volcano, KAI": lambda world, demands, seed: peer_unranked.packed(world, demands, seed=seed),
    "kube-scheduler TAS": lambda world, demands, seed: peer_unranked.kube_scheduler_tas(
        world, demands, seed=seed, level=1
    ),
    "kube-scheduler": lambda world, demands, seed: peer_unranked.kube_scheduler(world, demands, seed=seed),
}

CASES = (
    Case(
        title="PP 8, empty",
        job=JobKind("", 8),
        is_busy=False,
        measured={"Kueue": "0", "Koordinator": "0", "Koordinator, as named": "0", "Volcano, KAI": "0"},
        wanted={"chain": (0, 0)},
    ),
    Case(
        title="PP 8, every stage unlike, empty",
        job=JobKind("", 8, kinds=lambda num: [f"stage {index}" for index in range(num)]),
        is_busy=False,
        measured={"Kueue, PodSet a stage": "4"},
        wanted={"chain": (0, 0)},
    ),
    Case(
        title="PP 16, empty",
        job=JobKind("", 16),
        is_busy=False,
        measured={
            "Kueue": "3",
            "Koordinator": "3",
            "Koordinator, as named": "5",
            "Volcano, KAI": "6-10, 5-11",
            "kube-scheduler TAS": "13-14",
            "kube-scheduler": "9-10 + 5-6",
        },
        measured_late={
            "Kueue": "3",
            "Koordinator": "3",
            "Volcano, KAI": "3-4",
            "kube-scheduler TAS": "5-6",
        },
        wanted={"chain": (1, 0), "pack": (3, 0)},
        same_room_as_kueue=True,
    ),
    Case(
        title="PP 12, 24 of 64 busy",
        job=JobKind("", 12),
        is_busy=True,
        measured={
            "Kueue": "3.12",
            "Koordinator": "3.12",
            "Koordinator, as named": "4.25",
            "Volcano, KAI": "8.50, 7.50",
            "kube-scheduler TAS": "9.62",
            "kube-scheduler": "5.12 + 5.50",
        },
        wanted={"chain": (1.5, 0), "pack": (3.125, 0)},
        same_room_as_kueue=True,
    ),
    Case(
        title="PP 12, ends unlike, 24 of 64 busy",
        job=JobKind("", 12, kinds=ends_unlike),
        is_busy=True,
        measured={"Kueue, required": "4.00", "Kueue, preferred": "3.62 + 0.38", "Kueue, PodSet a stage": "5.62"},
        wanted={"chain": (1.5, 0), "pack": (3.125, 0)},
        same_room_as_kueue=True,
    ),
    Case(
        title="PP 8 of two node types, 24 of 64 busy",
        job=JobKind("", 8, kinds=two_types),
        is_busy=True,
        measured={"Kueue, required": "3.12", "Kueue, preferred": "1.12 + 0.50", "Koordinator": "3.12 + 0.62"},
        wanted={"chain": (0.75, 0)},
        has_types=True,
    ),
)


def anchor_rows() -> list[str]:
    """Print the anchors' cases, and give what is not as it must be."""
    fabric, faults = anchors(), list[str]()
    for case in CASES:
        print(f"\n{case.title}\n  {'':34}{'crossings':>14}{'measured':>14}{'room left: superpod / leaf':>30}")
        verdicts = {name: _verdicts(fabric, case, run) for name, run in RUNS.items() if name in case.measured}
        own = {each.value: _verdicts(fabric, case, _ours(each, case.job.stages)) for each in Objective}
        for name, each in {**{f"ours, {name}": each for name, each in own.items()}, **verdicts}.items():
            print(f"  {name:34}{_crossings(each):>14}{case.measured.get(name, ''):>14}{_room(each):>30}")
        for name, measured in case.measured_late.items():
            late = _verdicts(fabric, case, _numbered_late(RUNS[name]))
            print(f"  {name + ', late binding':34}{_crossings(late):>14}{measured:>14}{_room(late):>30}")
        faults += _faults(case, own, verdicts)
    return faults


def _ours(objective: Objective, stages: int) -> Run:
    prices = crossing_prices(stages, 3)

    def run(world: World, demands: list[Demand], _: int) -> Chosen | None:
        placed = place(demands, world.topology, world.nodes, prices=prices, objective=objective)
        return [each.path for each in placed.assignments]

    return run


def _numbered_late(run: Run) -> Run:
    """Let another choose the nodes, and number the stages then."""

    def renumbered(world: World, demands: list[Demand], seed: int) -> Chosen | None:
        chosen = run(world, demands, seed)
        if chosen is None:
            return None
        pods = [BoundPod(name=f"pod-{index}", shape="stage", node=path[-1]) for index, path in enumerate(chosen)]
        ranks = {(demand.replica, demand.stage): "stage" for demand in demands}
        placed = number(ranks, pods, world.topology, world.nodes, prices=crossing_prices(len(demands), 3)).placement
        return [each.path for each in placed.assignments]

    return renumbered


def nodes_by_type(fabric: Fabric) -> dict[str, frozenset[str]]:
    """Return the nodes of each of the two types."""
    even = frozenset(node.name for node in fabric.nodes if int(node.name.removeprefix("gpu-")) % 2 == 0)
    return {"even": even, "odd": frozenset(node.name for node in fabric.nodes) - even}


def _verdicts(fabric: Fabric, case: Case, run: Run) -> list[Verdict]:
    kinds = nodes_by_type(fabric) if case.has_types else None
    demands, prices, verdicts = case.job.demands(fabric, kinds), crossing_prices(case.job.stages, 3), list[Verdict]()
    for seed in SEEDS:
        world = World(topology=fabric.topology, nodes=anchors_occupied(fabric, seed) if case.is_busy else fabric.nodes)
        chosen = run(world, demands, seed)
        if chosen is not None:
            verdicts.append(judge(world, demands, chosen, prices))
    return verdicts


def _faults(case: Case, own: dict[str, list[Verdict]], peers: dict[str, list[Verdict]]) -> Iterable[str]:
    for objective, (leaves, superpods) in case.wanted.items():
        found = _mean(own[objective], 1), _mean(own[objective], 0)
        if found[0] > leaves + 1e-9 or found[1] > superpods + 1e-9:
            yield f"{case.title}: {objective} crosses {found[0]:.2f} leaves and {found[1]:.2f} superpods"
    for name, verdicts in peers.items():
        for objective, mine in own.items():
            if len(verdicts) == len(mine):
                for seed, (theirs, ours) in enumerate(zip(verdicts, mine, strict=True)):
                    if theirs.dominates(ours):
                        yield f"{case.title}, seed {seed}: {name} {theirs} beats ours, {objective} {ours}"
    if case.same_room_as_kueue:
        for name, verdicts in peers.items():
            for level in (0, 1):
                packed = mean(each.room[level] for each in own["pack"])
                if packed + 1e-9 < mean(each.room[level] for each in verdicts):
                    yield f"{case.title}: {name} leaves more than pack's {packed} at level {level}"


def _crossings(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "no place"
    leaves, superpods = _mean(verdicts, 1), _mean(verdicts, 0)
    return f"{leaves:.2f}" + (f" + {superpods:.2f}" if superpods else "")


def _room(verdicts: Sequence[Verdict]) -> str:
    return " / ".join(f"{mean(each.room[level] for each in verdicts):.1f}" for level in (0, 1)) if verdicts else ""


def _mean(verdicts: Sequence[Verdict], depth: int) -> float:
    return mean(each.crossings[depth] for each in verdicts)
