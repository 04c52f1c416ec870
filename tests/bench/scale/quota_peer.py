"""Kueue's own manager, admitting as many jobs on an equal cluster: batch Jobs of two pods, with quota for all its GPUs.

It decides less than this project's operator (quota, no nodes) and makes less: a Workload a job,
and the job's `suspend: false`. Its client is not held back by its default limit of requests.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import toolchain
from board import NAMESPACE
from support.api_server import kueuemanager as kueue
from support.local.processes import Process
from usage import using
from world import GPUS_A_NODE, NUM_NODES, ROOM, STAGES, World, each, world

_JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
_QUEUE = "all"
_AT_ONCE = 16
_POLL_S = 0.1
_CLIENT = {"clientConnection": {"qps": 1000, "burst": 2000}}


async def admit(num_jobs: int) -> dict[str, float]:
    """Return how fast Kueue admits jobs, created as fast as the API server takes them."""
    toolchain.provide(toolchain.KUEUE_TIER)
    fit = min(num_jobs, ROOM)
    async with world(is_watched=False) as here:
        manager = await asyncio.to_thread(_set_up, here)
        with using(manager.pid) as usage:
            begun = time.monotonic()
            jobs = (_job(f"plain-{number:05}") for number in range(num_jobs))
            await each(jobs, lambda body: here.api.request("POST", _JOBS, body=body), at_once=_AT_ONCE)
            created_s = time.monotonic() - begun
            while await _num_admitted(here) < fit:
                await asyncio.sleep(_POLL_S)
            admitted_s = time.monotonic() - begun
    return {
        "jobs": num_jobs, "fit": fit, "created_s": created_s, "admitted_s": admitted_s,
        "workloads_per_s": fit / admitted_s, "manager_s": usage.processor_s, "manager_mib": usage.resident_mib,
    }  # fmt: skip


def _set_up(here: World) -> Process:
    manager = kueue.start_kueue(here.server, **_CLIENT)
    gpus = NUM_NODES * GPUS_A_NODE
    here.server.apply(
        kueue.flavor("gpus"),
        kueue.cluster_queue(_QUEUE, flavors={"gpus": gpus}),
        kueue.local_queue(_QUEUE, NAMESPACE, of=_QUEUE),
    )
    return manager


async def _num_admitted(here: World) -> int:
    queue = await here.api.request("GET", f"/apis/{kueue.API}/clusterqueues/{_QUEUE}")
    return queue.get("status", {}).get("admittedWorkloads", 0)


def _job(name: str) -> dict[str, Any]:
    gpu = {"nvidia.com/gpu": "1"}
    container = {"name": "stage", "image": "stage", "resources": {"requests": gpu, "limits": gpu}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"kueue.x-k8s.io/queue-name": _QUEUE}},
        "spec": {
            "suspend": True,
            "parallelism": STAGES,
            "completions": STAGES,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }
