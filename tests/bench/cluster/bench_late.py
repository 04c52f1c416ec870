"""What numbering pods after they are bound is worth: the real kube-scheduler places a pipeline, before and after.

    python tests/bench/cluster/bench_late.py [--seeds 8] [-o FILE.json]

On the anchors' 64 nodes (a real API server and scheduler, kubelets that pretend) a late-bound job
is bound; boundaries between neighbouring stages that cross a leaf switch are counted twice: with
stages in the order in which the pods were made, as if they had been numbered at once, and as
numbered. No numbering of pods in so many leaves crosses less often than their number less one.
Once with the scheduler's defaults, once with what a user may ask of it: to prefer the leaf of the
job's other pods. Ends with 1 if a numbering is worse than it has to be.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import toolchain
from pipelinejob.fabric.topology import NodeInfo
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node, start_kwok
from support.api_server.operatorprocess import OperatorProcess, job
from support.local.processes import wait_until
from support.plans.placement_fabrics import anchors, anchors_occupied

LEVELS = ("x/superpod", "x/leaf")
NAME, NAMESPACE = "late", "default"
_CRDS = Path(__file__).parents[3] / "crds"
_NEAR = {
    "labelSelector": {"matchLabels": {"pipelinejob.io/name": NAME}},
    "topologyKey": "x/leaf",
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "kube-scheduler": {},
    "kube-scheduler, near each other": {
        "affinity": {
            "podAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": _NEAR}]
            }
        }
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One gang: boundaries that cross a leaf, or a superpod."""

    scheduler: str
    stages: int
    seed: int | None  # of the occupancy; None: nothing is taken
    leaves: int
    superpods: int
    leaf_before: int
    leaf_after: int
    superpod_before: int
    superpod_after: int

    @property
    def is_best(self) -> bool:
        """Tell whether no other numbering of these pods crosses less."""
        return (self.leaf_after, self.superpod_after) == (self.leaves - 1, self.superpods - 1)


class Bench:
    """The anchors' fabric under a scheduler and an operator."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._fabric = anchors()
        self._places = {each.name: tuple(each.labels[level] for level in LEVELS) for each in self._fabric.nodes}

    def measure(self, scheduler: str, *, stages: int, seed: int | None) -> Row:
        nodes = self._fabric.nodes if seed is None else anchors_occupied(self._fabric, seed)
        with self._taken(nodes):
            found = self._numbered(SCHEDULERS[scheduler], stages)
        after = [self._places[each["node"]] for each in found]
        made = sorted(found, key=lambda each: int(each["pod"].rpartition("-p")[2]))
        before = [self._places[each["node"]] for each in made]
        return Row(
            scheduler=scheduler,
            stages=stages,
            seed=seed,
            leaves=len(set(after)),
            superpods=len({superpod for superpod, _ in after}),
            leaf_before=_crossings(before, 1),
            leaf_after=_crossings(after, 1),
            superpod_before=_crossings(before, 0),
            superpod_after=_crossings(after, 0),
        )

    def _numbered(self, template: dict[str, Any], stages: int) -> list[dict[str, Any]]:
        late = {"scheduling": {"binding": "Late"}, "topology": {"levels": list(LEVELS)}}
        self._server.apply(job(NAMESPACE, NAME, stages=stages, template={"spec": template}, **late))
        wait_until(self._is_numbered, "the stages are numbered", timeout_s=60)
        found = self._server.get("pipelinejob", NAME)["status"]["stages"]
        self._server.kubectl("delete", "pipelinejob", NAME)
        wait_until(lambda: not self._server.get("pods", "-n", NAMESPACE)["items"], "the pods are gone")
        return found

    def _is_numbered(self) -> bool:
        conditions = self._server.get("pipelinejob", NAME).get("status", {}).get("conditions", ())
        return any(each["type"] == "Placed" and each["status"] == "True" for each in conditions)

    @contextmanager
    def _taken(self, nodes: Sequence[NodeInfo]) -> Iterator[None]:
        taken = [each.name for each in nodes if not any(each.free.values())]
        if taken:
            self._server.kubectl("cordon", *taken)
        yield
        if taken:
            self._server.kubectl("uncordon", *taken)


def _crossings(places: Sequence[tuple[str, ...]], depth: int) -> int:
    return sum(one[: depth + 1] != other[: depth + 1] for one, other in pairwise(places))


def run(seeds: int) -> list[Row]:
    toolchain.provide(toolchain.APISERVER_TIER)
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder) / "api") as server:
        for crd in sorted(_CRDS.glob("*.yaml")):
            server.kubectl("apply", "--server-side", "-f", crd)
            server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", crd)
        server.start_scheduler()
        server.start_controllers()
        start_kwok(server)
        # By name, which says nothing of the leaf: kube-scheduler fills equal nodes in the order in
        # which they came.
        nodes = sorted(anchors().nodes, key=lambda each: each.name)
        add_nodes(server, [node(each.name, gpus=1, labels=dict(each.labels)) for each in nodes])
        with OperatorProcess(server.kubeconfig, Path(folder), "--no-leader-election"):
            bench = Bench(server)
            return [
                bench.measure(scheduler, stages=stages, seed=seed)
                for scheduler in SCHEDULERS
                for stages, occupancies in ((16, [None]), (12, range(seeds)))
                for seed in occupancies
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="occupancies of 24 nodes (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    rows = run(given.seeds)
    print(
        f"{'crossings of leaf (+ superpod)':34}{'stages':>7}{'gangs':>6}{'as made':>15}{'numbered':>15}{'leaves':>12}"
    )
    for scheduler in SCHEDULERS:
        for stages in (16, 12):
            of = [row for row in rows if (row.scheduler, row.stages) == (scheduler, stages)]
            before = f"{mean(row.leaf_before for row in of):.2f} + {mean(row.superpod_before for row in of):.2f}"
            after = f"{mean(row.leaf_after for row in of):.2f} + {mean(row.superpod_after for row in of):.2f}"
            leaves = f"{mean(row.leaves for row in of):.2f}"
            print(f"{scheduler:34}{stages:>7}{len(of):>6}{before:>15}{after:>15}{leaves:>12}")
    if given.output:
        given.output.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    sys.exit(not all(row.is_best for row in rows))


if __name__ == "__main__":
    main()
