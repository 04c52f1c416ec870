"""What the operator's caches take: bytes of resident memory a job, pod and node, and the time to read one.

    python tests/bench/cluster/bench_memory.py [--jobs 10000] [--pods 20000] [--nodes 2000] [-o FILE.json]

One object of each kind is made through a real API server, with the operator at work, and read back
as an informer reads it. Of that, lists of many are written, with other names, uids, nodes and
times. A process of its own reads each list page by page; its memory grows by what it keeps: "as
parsed" all but managedFields, "kept" what the operator keeps. Times are the processor's.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import orjson

import toolchain
from pipelinejob_operator.kube.caching import projection
from pipelinejob_operator.kube.caching.informer import without_managed_fields
from pipelinejob_operator.kube.caching.sharing import Shared
from pipelinejob_operator.process import garbage
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node, start_kwok
from support.api_server.operatorprocess import OperatorProcess, is_placed, job
from support.local.processes import wait_until

_CRDS = Path(__file__).parents[3] / "crds"
_PAGE = 250
_PLACED, _WAITING, _NODE, _OTHER = "train-000000", "queue-000000", "node-000000", "other-000000"
_PROJECTIONS = {"Pod": projection.pod, "Node": projection.node, "PipelineJob": projection.job}
_TIMES = re.compile(rb"T\d\d:\d\d:\d\dZ")
_UIDS = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Keep = Callable[[dict[str, Any]], Any]


def real_objects() -> tuple[dict[str, dict[str, Any]], int]:
    """Return an object of each kind as the API server gives it, and the bytes that the operator takes with so few."""
    toolchain.provide(toolchain.APISERVER_TIER)
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder) / "api") as server:
        for crd in sorted(_CRDS.glob("*.yaml")):
            server.kubectl("apply", "--server-side", "-f", crd)
        server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        server.start_scheduler()
        start_kwok(server)
        labels = {f"feature.node.kubernetes.io/cpu-cpuid.F{number}": "true" for number in range(40)}
        add_nodes(server, [node(_NODE, gpus=8, labels=labels)])
        with OperatorProcess(server.kubeconfig, Path(folder)) as operator:
            for name, stages in ((_PLACED, 2), (_WAITING, 16)):
                server.kubectl("apply", "-f", "-", stdin=json.dumps(job("default", name, stages=stages)))
            server.apply(_other_pod())
            wait_until(lambda: is_placed(server, "default", _PLACED, ranks=2), "a job is placed")
            wait_until(lambda: _status(server, _WAITING).get("conditions"), "the other waits")
            wait_until(lambda: _status(server, _PLACED).get("stagesReady") == "2/2", "its stages are up")
            own_bytes = _resident(operator.process.pid)
        found = {
            "jobs that train": _raw(server, f"/apis/pipelinejob.io/v1alpha1/namespaces/default/pipelinejobs/{_PLACED}"),
            "jobs that wait": _raw(server, f"/apis/pipelinejob.io/v1alpha1/namespaces/default/pipelinejobs/{_WAITING}"),
            "pods of jobs": _raw(server, f"/api/v1/namespaces/default/pods/{_PLACED}-r0-s0"),
            "other pods": _raw(server, f"/api/v1/namespaces/default/pods/{_OTHER}"),
            "nodes": _raw(server, f"/api/v1/nodes/{_NODE}"),
        }
        return found, own_bytes


def _other_pod() -> dict[str, Any]:
    container = {
        "image": "example.org/app:1",
        "env": [{"name": f"SETTING_{number}", "value": f"value {number}"} for number in range(20)],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
    }
    containers = [{"name": "app", **container}, {"name": "side", **container}]
    metadata = {"namespace": "default", "name": _OTHER, "labels": {"app": "app", "pod-template-hash": "5d4f8c7b9"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers}}


def _status(server: ApiServer, name: str) -> dict[str, Any]:
    return server.get("pipelinejob", name).get("status") or {}


def _raw(server: ApiServer, path: str) -> dict[str, Any]:
    return json.loads(server.kubectl("get", "--raw", path))


def copies(item: dict[str, Any], count: int) -> Iterator[bytes]:
    """Yield the JSON of as many objects like this one, two of them of one job, eight of them on one node."""
    text, own = orjson.dumps(item), item["metadata"]["uid"].encode()
    for number in range(count):
        second, minute = number // 40 % 60, number // 2400 % 60
        copy = _TIMES.sub(f"T06:{minute:02}:{second:02}Z".encode(), text)
        copy = copy.replace(own, b"OWN")
        copy = _UIDS.sub(str(uuid.UUID(int=number // 2 + 2**64)).encode(), copy)
        copy = copy.replace(b"OWN", str(uuid.UUID(int=number)).encode())
        ordinal = number if item["kind"] != "Pod" else number // 2
        for name in (_PLACED, _WAITING, _OTHER):
            copy = copy.replace(name.encode(), f"{name[:6]}{ordinal:06}".encode())
        copy = copy.replace(b"-r0-s0", f"-r0-s{number % 2}".encode())
        on = number if item["kind"] == "Node" else number // 8
        yield copy.replace(_NODE.encode(), f"{_NODE[:5]}{on:06}".encode())


def measure(item: dict[str, Any], count: int, *, is_kept: bool) -> dict[str, float]:
    """Measure in a process of its own, which has no memory to use again."""
    with tempfile.NamedTemporaryFile() as file:
        listed = list(copies(item, count))
        for start in range(0, count, _PAGE):
            file.write(b'{"items":[' + b",".join(listed[start : start + _PAGE]) + b"]}\n")
        file.flush()
        how = "kept" if is_kept else "parsed"
        command = [sys.executable, __file__, "--child", file.name, item["kind"], how]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(file: Path, kind: str, how: str) -> dict[str, float]:
    """Read a list as an informer does."""
    garbage.search_seldom()
    shared, project = Shared(), _PROJECTIONS[kind]
    keep: Keep = (lambda item: shared.keep(project(item))) if how == "kept" else without_managed_fields
    objects: list[Any] = []
    longest_s, before, began_s = 0.0, _resident("self"), time.process_time()
    with file.open("rb") as pages:
        for page in pages:
            page_s = time.process_time()
            items = orjson.loads(page)["items"]
            longest_s = max(longest_s, time.process_time() - page_s)
            objects += [keep({"kind": kind, "apiVersion": "v1", **item}) for item in items]
            del items, page
    took_s = time.process_time() - began_s
    gc.collect()
    return {
        "bytes": (_resident("self") - before) / len(objects),
        "microseconds": took_s / len(objects) * 1e6,
        "longest_page_ms": longest_s * 1e3,
    }


def _resident(pid: int | str) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("jobs", 10_000), ("pods", 20_000), ("nodes", 2_000)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-memory.json"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        file, kind, how = options.child
        print(json.dumps(child(Path(file), kind, how)))
        return
    objects, own_bytes = real_objects()
    counts = {"PipelineJob": options.jobs, "Pod": options.pods, "Node": options.nodes}
    figures: dict[str, Any] = {"operator_bytes": own_bytes}
    print(f"the operator with a handful of objects: {own_bytes / 2**20:.0f} MiB")
    print(f"{'':18}{'JSON':>10}{'as parsed':>12}{'kept':>10}{'to read':>12}{'a page':>10}")
    for what, item in objects.items():
        parsed, kept = (measure(item, counts[item["kind"]], is_kept=is_kept) for is_kept in (False, True))
        size = len(orjson.dumps(item))
        figures[what] = {"json_bytes": size, "parsed": parsed, "kept": kept}
        sizes = f"{size:>10,}{parsed['bytes']:>12,.0f}{kept['bytes']:>10,.0f}"
        print(f"{what:18}{sizes}{kept['microseconds']:>9.0f} us{kept['longest_page_ms']:>7.0f} ms")
    options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
