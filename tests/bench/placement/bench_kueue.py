"""Kueue's own manager beside its model and ourselves, on the anchors' 64 nodes.

    python tests/bench/placement/bench_kueue.py

The API server and Kueue's manager (built from its Go module) are real; nodes have no kubelets, and
busy nodes carry a pod that takes all their GPUs. A case is put as a Workload with a topology
request; what is read is its admission: nodes in the order in which Kueue hands out ranks. Ends
with 1 if the model is wrong about Kueue, or Kueue beats us.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[2]))

import toolchain
from anchor_cases import RUNS, nodes_by_type, two_types
from judge import Verdict, judge
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import crossing_prices
from pipelinejob.spec.network.objective import Objective
from schedulers import by_kind, one_each
from support.api_server import kueuemanager as kueue
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.local.processes import wait_until
from support.plans.placement_fabrics import Fabric, anchors, anchors_occupied
from support.plans.placement_jobs import JobKind, ends_unlike
from world import Chosen, World

LEVELS = ("x/superpod", "x/leaf")
API = "kueue.x-k8s.io/v1beta2"
SEEDS = range(8)
LEAF, SUPERPOD = {"preferred": "x/leaf"}, {"required": "x/superpod"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A job as a user of Kueue would put it."""

    title: str
    job: JobKind
    model: str  # of RUNS
    grouped: Callable[[Sequence[Demand]], list[list[int]]] = by_kind  # ranks of each PodSet
    request: dict[str, str]
    is_busy: bool = True


CASES = (
    Case(title="PP 16, empty", job=JobKind("", 16), model="Kueue", request=LEAF, is_busy=False),
    Case(title="PP 12, busy", job=JobKind("", 12), model="Kueue", request=LEAF),
    Case(
        title="PP 12, ends unlike, busy",
        job=JobKind("", 12, kinds=ends_unlike),
        model="Kueue, required",
        request=SUPERPOD,
    ),
    Case(
        title="PP 12, a PodSet a stage, busy",
        job=JobKind("", 12),
        model="Kueue, PodSet a stage",
        grouped=one_each,
        request=SUPERPOD,
    ),
    Case(
        title="PP 8 of two node types, busy",
        job=JobKind("", 8, kinds=two_types),
        model="Kueue, preferred",
        request=LEAF,
    ),
)


class Kueue:
    """A real manager over the anchors' nodes; `place` asks it for one assignment."""

    def __init__(self, server: ApiServer, fabric: Fabric) -> None:
        self._server, self._fabric = server, fabric
        self._number = 0
        self._paths = fabric.topology.paths

    def set_up(self) -> None:
        """Make nodes, the topology, and a queue that has quota for all."""
        add_nodes(self._server, [_node(each.name, dict(each.labels)) for each in self._fabric.nodes])
        kueue.start_kueue(self._server)
        levels = [{"nodeLabel": key} for key in (*LEVELS, "kubernetes.io/hostname")]
        flavor = kueue.flavor("gpus", bench="placement")
        flavor["spec"]["topologyName"] = "anchors"
        self._server.apply(
            {"apiVersion": API, "kind": "Topology", "metadata": {"name": "anchors"}, "spec": {"levels": levels}},
            flavor,
            kueue.cluster_queue("all", flavors={"gpus": 10_000}),
            kueue.local_queue("all", "default", of="all"),
        )

    def occupy(self, seed: int | None) -> None:
        """Take the nodes of this seed, with a pod each, and no others."""
        self._server.kubectl("delete", "pods", "-n", "default", "-l", "bench=busy", "--force", "--grace-period=0")
        busy = [] if seed is None else _busy(self._fabric, seed)
        if busy:
            self._server.apply(*(_pod(name) for name in busy))
            for name in busy:
                status = json.dumps({"status": {"phase": "Running"}})
                self._server.kubectl(
                    "patch",
                    "pod",
                    f"busy-{name}",
                    "-n",
                    "default",
                    "--subresource=status",
                    "--type=merge",
                    "-p",
                    status,
                )

    def place(self, sets: Sequence[tuple[str, int]], request: dict[str, str]) -> Chosen:
        """Return the nodes of all pods, PodSet by PodSet, whose kinds and sizes are given.

        Kueue learns of pods a little later than the API server: the answer counts once it is given
        twice.
        """
        before: Chosen | None = None
        while True:
            answer = self._placed(sets, request)
            if answer == before:
                return answer
            before = answer

    def _placed(self, sets: Sequence[tuple[str, int]], request: dict[str, str]) -> Chosen:
        self._number += 1
        name = f"case-{self._number}"
        pod_sets = [_pod_set(index, kind, count, request) for index, (kind, count) in enumerate(sets)]
        self._server.apply({
            "apiVersion": API, "kind": "Workload", "metadata": {"name": name, "namespace": "default"},
            "spec": {"queueName": "all", "podSets": pod_sets},
        })  # fmt: skip
        wait_until(lambda: self._admission(name), f"Kueue admits {name}", timeout_s=30)
        assignments = {each["name"]: each["topologyAssignment"] for each in self._admission(name)["podSetAssignments"]}
        self._server.kubectl("delete", "workload.kueue.x-k8s.io", name, "-n", "default")
        nodes = [each for index in range(len(sets)) for each in _nodes(assignments[f"set-{index}"])]
        return [self._paths[each] for each in nodes]

    def _admission(self, name: str) -> dict | None:
        workload = self._server.get("workload.kueue.x-k8s.io", name, "-n", "default")
        return workload.get("status", {}).get("admission")


def _busy(fabric: Fabric, seed: int) -> list[str]:
    return [each.name for each in anchors_occupied(fabric, seed) if not any(each.free.values())]


def _node(name: str, labels: dict[str, str]) -> dict:
    kind = "even" if int(name.removeprefix("gpu-")) % 2 == 0 else "odd"
    return node(name, gpus=8, labels={**labels, "bench": "placement", "x/type": kind})


def _pod(name: str) -> dict:
    gpus = {"nvidia.com/gpu": "8"}
    container = {"name": "busy", "image": "busy", "resources": {"requests": gpus, "limits": gpus}}
    metadata = {"name": f"busy-{name}", "namespace": "default", "labels": {"bench": "busy"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": name, "containers": [container]},
    }


def _pod_set(index: int, kind: str, count: int, request: dict[str, str]) -> dict:
    container = {"name": "stage", "image": "stage", "resources": {"requests": {"nvidia.com/gpu": "8"}}}
    spec = {"restartPolicy": "Never", "containers": [container]}
    if kind in {"even", "odd"}:
        spec["nodeSelector"] = {"x/type": kind}
    return {"name": f"set-{index}", "count": count, "template": {"spec": spec}, "topologyRequest": request}


def _nodes(assignment: dict) -> Iterator[str]:
    """Return the nodes in the order in which ranks are handed out: a domain after another, as often as it has pods."""
    for part in assignment["slices"]:
        (values,) = part["valuesPerLevel"]
        individual = values.get("individual")
        names = [values["universal"]] if individual is None else [
            individual.get("prefix", "") + root + individual.get("suffix", "") for root in individual["roots"]
        ]  # fmt: skip
        counts = part["podCounts"]
        each = [counts["universal"]] * len(names) if "universal" in counts else counts["individual"]
        for name, count in zip(names, each, strict=True):
            yield from [name] * count


def main() -> int:
    """Run it all; give the exit status."""
    toolchain.provide(toolchain.KUEUE_TIER)
    fabric, faults = anchors(), list[str]()
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder) / "server") as server:
        manager = Kueue(server, fabric)
        manager.set_up()
        print(f"  {'leaves + superpods':34}{'Kueue itself':>16}{'its model':>16}{'ours, chain':>16}{'ours, pack':>16}")
        for case in CASES:
            rows = _rows(manager, fabric, case)
            print(f"  {case.title:34}" + "".join(f"{_mean(each):>16}" for each in rows.values()), flush=True)
            faults += _faults(case.title, rows)
    print(f"\n{len(faults)} faults" + "".join(f"\n  {fault}" for fault in faults))
    return 1 if faults else 0


def _rows(manager: Kueue, fabric: Fabric, case: Case) -> dict[str, list[Verdict]]:
    rows: dict[str, list[Verdict]] = {"Kueue": [], "model": [], "chain": [], "pack": []}
    kinds, prices = case.job.kinds(case.job.stages), crossing_prices(case.job.stages, 3)
    demands = case.job.demands(fabric, nodes_by_type(fabric) if case.job.kinds is two_types else None)
    for seed in SEEDS if case.is_busy else [0]:
        nodes = anchors_occupied(fabric, seed) if case.is_busy else fabric.nodes
        world = World(topology=fabric.topology, nodes=nodes)
        manager.occupy(seed if case.is_busy else None)
        sets = [(kinds[ranks[0]], len(ranks)) for ranks in case.grouped(demands)]
        rows["Kueue"].append(judge(world, demands, manager.place(sets, case.request), prices))
        modelled = RUNS[case.model](world, demands, seed)
        assert modelled is not None, "Kueue itself found a place"
        rows["model"].append(judge(world, demands, modelled, prices))
        for objective in (Objective.CHAIN, Objective.PACK):
            placed = place(demands, world.topology, world.nodes, prices=prices, objective=objective)
            paths = [each.path for each in placed.assignments]
            rows[objective.value].append(judge(world, demands, paths, prices))
    return rows


def _mean(verdicts: Sequence[Verdict]) -> str:
    leaves, superpods = (mean(each.crossings[depth] for each in verdicts) for depth in (1, 0))
    return f"{leaves:.2f}" + (f" + {superpods:.2f}" if superpods else "")


def _faults(title: str, rows: dict[str, list[Verdict]]) -> Iterator[str]:
    for seed, (theirs, model) in enumerate(zip(rows["Kueue"], rows["model"], strict=True)):
        if theirs.crossings != model.crossings:
            yield f"{title}, seed {seed}: Kueue crosses {theirs.crossings}, its model {model.crossings}"
        for own in ("chain", "pack"):
            if theirs.dominates(rows[own][seed]):
                yield f"{title}, seed {seed}: Kueue {theirs} beats {own} {rows[own][seed]}"


if __name__ == "__main__":
    sys.exit(main())
