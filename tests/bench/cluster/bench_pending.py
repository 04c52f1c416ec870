"""How long from `kubectl apply` until a job that cannot start says why: one after another, through the real operator.

    python tests/bench/cluster/bench_pending.py [--jobs 50] [--nodes 64] [-o FILE.json]

The API server and etcd are real; the nodes are bare objects, full of jobs, some of lower priority
and some waiting. The clock starts before the request that creates the job is sent, and stops when
a watch brings its status with the sentence that says what is missing. Jobs of three kinds take
turns: too large for what is free, behind another, too large for the cluster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import toolchain
from bench_admission import NAMESPACE, Client, percentile
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node, start_kwok
from support.api_server.operatorprocess import OperatorProcess, is_placed, job
from support.local.processes import wait_until

BOUND_S = 2.0
_CRDS = Path(__file__).parents[3] / "crds"
_JOBS = f"/apis/pipelinejob.io/v1alpha1/namespaces/{NAMESPACE}/pipelinejobs"
_LEAF = "topology.kubernetes.io/rack"


class Watcher(Client):
    """Sees one job change."""

    @contextmanager
    def watch_job(self, name: str) -> Iterator[Iterator[dict[str, Any]]]:
        query = f"watch=1&timeoutSeconds=60&resourceVersion={self.revision()}&fieldSelector=metadata.name={name}"
        with self._open(f"{_JOBS}?{query}") as response:
            yield (json.loads(line)["object"] for line in response)


def kinds(num_nodes: int) -> dict[str, dict[str, Any]]:
    """Return the jobs that wait, by what each lacks: a quarter of the nodes is free, and there are two racks."""
    leaf = {"topology": {"levels": [_LEAF], "pipeline": {"required": _LEAF}}}
    return {
        "no room in one rack": {"stages": num_nodes * 3 // 8, **leaf},
        "no room": {"stages": num_nodes // 2},
        "never fits": {"stages": num_nodes + 1},
    }


def measure(server: ApiServer, client: Watcher, name: str, spec: dict[str, Any]) -> tuple[float, str]:
    """Return the seconds until the job says why it waits, and what it says; the job is gone afterwards."""
    with client.watch_job(name) as changes:
        started = time.perf_counter()
        client.create(job(NAMESPACE, name, **spec))
        message = next(filter(None, map(why, changes)), "")
        took_s = time.perf_counter() - started
    if not message:
        raise SystemExit(f"{name}: said nothing in 60 s")
    server.kubectl("delete", "pipelinejob", "-n", NAMESPACE, name)
    return took_s, message


def why(manifest: dict[str, Any]) -> str:
    conditions = manifest.get("status", {}).get("conditions", ())
    return next((each["message"] for each in conditions if each["type"] == "Placed" and each["status"] == "False"), "")


def run(jobs: int, num_nodes: int) -> list[dict[str, Any]]:
    toolchain.provide(toolchain.APISERVER_TIER)
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder) / "api") as server:
        for crd in sorted(_CRDS.glob("*.yaml")):
            server.kubectl("apply", "--server-side", "-f", crd)
            server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", crd)
        server.start_scheduler()
        server.start_controllers()
        start_kwok(server)
        racks = [node(f"node-{n:03}", gpus=1, labels={_LEAF: f"rack-{2 * n // num_nodes}"}) for n in range(num_nodes)]
        add_nodes(server, racks)
        with OperatorProcess(server.kubeconfig, Path(folder)) as operator:
            wait_until(lambda: operator.metric("leader_election_master_status") == 1, "the operator leads")
            client = Watcher(server)
            fill(server, client, num_nodes)
            waiting = list(kinds(num_nodes).items())
            results = []
            for number in range(jobs):
                kind, spec = waiting[number % len(waiting)]
                seconds, message = measure(server, client, f"bench-{number}", spec)
                results.append({"kind": kind, "seconds": round(seconds, 4), "message": message})
            return results


def fill(server: ApiServer, client: Watcher, num_nodes: int) -> None:
    """Let jobs of four stages run on three nodes of four, and three more wait for the rest."""
    count = num_nodes * 3 // 4 // 4
    for number in range(count):
        client.create(job(NAMESPACE, f"running-{number}", stages=4))
    for number in range(count):
        name = f"running-{number}"
        wait_until(lambda name=name: is_placed(server, NAMESPACE, name, ranks=4), f"{name} runs", timeout_s=120)
    for number in range(3):
        client.create(job(NAMESPACE, f"waiting-{number}", stages=num_nodes - 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    results = run(given.jobs, given.nodes)
    seconds = [each["seconds"] for each in results]
    figures = {
        "jobs": given.jobs,
        "nodes": given.nodes,
        "p50_s": round(percentile(seconds, 0.5), 3),
        "p90_s": round(percentile(seconds, 0.9), 3),
        "p99_s": round(percentile(seconds, 0.99), 3),
        "max_s": round(max(seconds), 3),
        "bound_s": BOUND_S,
    }
    for name, value in figures.items():
        print(f"{name:12} {value}")
    for kind in kinds(given.nodes):
        print(f"{kind}: {next(each['message'] for each in results if each['kind'] == kind)}")
    if given.output:
        given.output.write_text(json.dumps({**figures, "results": results}, indent=2) + "\n")
    sys.exit(figures["p99_s"] >= BOUND_S)


if __name__ == "__main__":
    main()
