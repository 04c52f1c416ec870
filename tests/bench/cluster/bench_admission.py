"""How long from `kubectl apply` to the last pod of a job ungated: one job after another, through the real operator.

    python tests/bench/cluster/bench_admission.py [--jobs 50] [--stages 8] [-o FILE.json]

The API server and etcd are real, kwok plays the nodes. The clock starts before the request that
creates the job is sent, and stops when a watch brings the last of its pods without a scheduling
gate.
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import toolchain
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node, start_kwok
from support.api_server.operatorprocess import OperatorProcess, job, pods
from support.local.processes import wait_until

NAMESPACE = "default"
BOUND_P99_S = 2.0
_CRD = Path(__file__).parents[3] / "crds" / "pipelinejobs.yaml"


class Client:
    """The API over plain HTTP requests: kubectl's own start would be most of what is measured."""

    def __init__(self, server: ApiServer) -> None:
        self._url = server.url
        self._token = server.token
        self._context = ssl.create_default_context(cafile=str(server.ca))

    def create(self, item: dict[str, Any]) -> None:
        path = f"/apis/pipelinejob.io/v1alpha1/namespaces/{NAMESPACE}/pipelinejobs"
        with self._open(path, json.dumps(item).encode()) as response:
            response.read()

    def revision(self) -> str:
        with self._open(f"/api/v1/namespaces/{NAMESPACE}/pods?limit=1") as response:
            return json.loads(response.read())["metadata"]["resourceVersion"]

    @contextmanager
    def watch(self, name: str) -> Iterator[Iterator[dict[str, Any]]]:
        query = f"watch=1&timeoutSeconds=60&resourceVersion={self.revision()}&labelSelector=pipelinejob.io/name={name}"
        with self._open(f"/api/v1/namespaces/{NAMESPACE}/pods?{query}") as response:
            yield (json.loads(line)["object"] for line in response)

    def _open(self, path: str, body: bytes | None = None):
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}{path}", data=body, headers=headers)
        return urllib.request.urlopen(request, context=self._context, timeout=70)


def measure(server: ApiServer, client: Client, name: str, stages: int) -> float:
    """Return the seconds until the last pod of a new job is ungated; the job is gone afterwards."""
    ungated: set[str] = set()
    with client.watch(name) as changes:
        started = time.perf_counter()
        client.create(job(NAMESPACE, name, stages=stages))
        for pod in changes:
            if not pod["spec"].get("schedulingGates"):
                ungated.add(pod["metadata"]["name"])
            if len(ungated) == stages:
                break
        took_s = time.perf_counter() - started
    if len(ungated) != stages:
        raise SystemExit(f"{name}: only {len(ungated)} of {stages} pods were ungated in 60 s")
    server.kubectl("delete", "pipelinejob", "-n", NAMESPACE, name)
    wait_until(lambda: not pods(server, NAMESPACE, name), "the pods are collected")
    return took_s


def run(jobs: int, stages: int) -> list[float]:
    toolchain.provide(toolchain.APISERVER_TIER)
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder) / "api") as server:
        server.kubectl("apply", "--server-side", "-f", _CRD)
        server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", _CRD)
        server.start_scheduler()
        server.start_controllers()
        start_kwok(server)
        add_nodes(server, [node(f"node-{number}", gpus=4) for number in range(stages)])
        with OperatorProcess(server.kubeconfig, Path(folder)) as operator:
            wait_until(lambda: operator.metric("leader_election_master_status") == 1, "the operator leads")
            client = Client(server)
            return [measure(server, client, f"bench-{number}", stages) for number in range(jobs)]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    seconds = run(given.jobs, given.stages)
    figures = {
        "jobs": given.jobs,
        "stages": given.stages,
        "p50_s": round(percentile(seconds, 0.5), 3),
        "p90_s": round(percentile(seconds, 0.9), 3),
        "p99_s": round(percentile(seconds, 0.99), 3),
        "max_s": round(max(seconds), 3),
        "bound_p99_s": BOUND_P99_S,
        "seconds": [round(value, 4) for value in seconds],
    }
    for name, value in figures.items():
        if name != "seconds":
            print(f"{name:12} {value}")
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(figures["p99_s"] >= BOUND_P99_S)


if __name__ == "__main__":
    main()
