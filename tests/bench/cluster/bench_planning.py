"""How late the operator's event loop is while large jobs are planned, beside the same loop with nothing to plan.

    python tests/bench/cluster/bench_planning.py [--jobs 1] [--gpus 512] [-o FILE.json]

GPT-3 with everything left to be chosen, on 512 nodes of 8 GPUs that are only objects: one pass of
reconcile over each job, all at once, on one event loop, by threads that share the interpreter with
it as in the operator's process. A task that wants to be woken every 10 ms measures how late it is;
so do 300 ticks before, when nothing is planned.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelinejob_operator.process.serve import SWITCH_S
from support.clusters.operatorworld import World
from support.manifests.jobs import node

EXAMPLE = Path(__file__).parents[3] / "examples" / "gpt3-175b.yaml"
TICK_S = 0.01
QUIET_TICKS = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=512)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args(arguments)
    sys.setswitchinterval(SWITCH_S)
    result = asyncio.run(measured(given.jobs, given.gpus))
    print(json.dumps(result, indent=1))
    if given.output:
        given.output.write_text(json.dumps(result, indent=1), encoding="utf-8")


async def measured(num_jobs: int, num_gpus: int) -> dict[str, Any]:
    """Return how late the loop was, in seconds, without and beside planning."""
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "topology.kubernetes.io/zone": "a"}
    world = World([node(f"n{index}", gpus=8, labels=product) for index in range(512)])
    keys = [world.submit(manifest(number, num_gpus)) for number in range(num_jobs)]
    late: list[float] = []
    ticking = asyncio.create_task(tick(late))
    while len(late) < QUIET_TICKS:
        await asyncio.sleep(TICK_S)
    quiet = tuple(late)
    late.clear()
    started = time.perf_counter()
    # What is timed is planning: the first write, and all that follows, are the fake cluster's.
    await asyncio.gather(*(world.controller.reconcile(key) for key in keys))
    took_s = time.perf_counter() - started
    ticking.cancel()
    return {
        "jobs": num_jobs,
        "gpus": num_gpus,
        "planned in": round(took_s, 2),
        "quiet": summary(quiet),
        "beside planning": summary(late),
    }


def manifest(number: int, num_gpus: int) -> dict[str, Any]:
    """Return GPT-3, unlike the others in its batch, so that none is planned by another's plan."""
    found: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    found["metadata"] = {"name": f"gpt3-{number}", "namespace": "default"}
    found["spec"]["parallelism"] = {"gpus": num_gpus, "tensor": 1}
    found["spec"]["schedule"]["globalBatchSize"] += 512 * number
    return found


async def tick(late: list[float]) -> None:
    """Note how late each waking is, for ever."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(TICK_S)
        late.append(time.perf_counter() - before - TICK_S)


def summary(late: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and worst, in milliseconds."""
    ordered = sorted(late)
    return {
        "median": round(1e3 * median(ordered), 1),
        "p99": round(1e3 * ordered[int(0.99 * (len(ordered) - 1))], 1),
        "worst": round(1e3 * ordered[-1], 1),
    }


if __name__ == "__main__":
    main()
