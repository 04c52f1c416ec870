"""How fast the API server takes what the operator writes, from a client that decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from board import JOBS
from large import large_job
from recording import Copy, Recording, RecordingProxy, writer
from usage import using
from world import PATIENCE_S, ROOM, STAGES, World, each, operator, small_job, world

_AT_ONCE = 32
_QUIET_S = 2.0
NOWHERE = {"template": {"spec": {"nodeSelector": {"bench/pool": "none"}}}}


async def limit(num_jobs: int) -> dict[str, float]:
    """Write jobs, as many that are let go and as many that wait as `burst` has, all their objects and statuses."""
    num_running = min(num_jobs, ROOM)
    async with world() as here:
        running, waiting = await record(here, small_job("recorded-placed"), small_job("recorded-waits", **NOWHERE))
    work = [(running, f"running-{number:05}") for number in range(num_running)]
    work += [(waiting, f"waiting-{number:05}") for number in range(num_jobs - num_running)]
    async with world(is_watched=False) as here, writer(here.server) as bare:
        with using(*here.server_pids) as server:
            begun_s = time.process_time()
            await each(work, lambda one: bare.repeat(*one), at_once=_AT_ONCE)
            bench_s = time.process_time() - begun_s
    return {
        "jobs": num_jobs, "took_s": server.wall_s, "jobs_per_s": num_running / server.wall_s,
        "pods_per_s": STAGES * num_running / server.wall_s, "server_s": server.processor_s, "bench_s": bench_s,
        "writes_a_placed_job": 1 + len(running.writes), "writes_a_waiting_job": 1 + len(waiting.writes),
    }  # fmt: skip


async def large_limit(num_ranks: int) -> dict[str, float]:
    """Write one job of that many ranks, with all its pods and statuses."""
    async with world() as here:
        (recording,) = await record(here, large_job(num_ranks))
    async with world(is_watched=False) as here, writer(here.server) as bare:
        with using(*here.server_pids) as server:
            await bare.repeat(recording, "again", at_once=_AT_ONCE)
    return {
        "ranks": num_ranks,
        "took_s": server.wall_s,
        "server_s": server.processor_s,
        "writes": 1 + len(recording.writes),
    }


async def restart_limit(num_jobs: int) -> dict[str, float]:
    """Write what the operator writes for jobs whose pods were all deleted at once, beginning with the new pods."""
    name = "recorded"
    async with world() as here, recording(here) as proxy:
        stored = await _decided(here, small_job(name))
        await _quiet(proxy, [stored])
        placed = proxy.of(stored)
        await here.delete_pods(list(here.board.jobs[name].pods))
        seen = here.board.jobs[name]
        await here.board.until(lambda: not seen.let_go, "its pods are gone", timeout_s=PATIENCE_S)
        await here.board.until(lambda: seen.let_go, "it has pods again", timeout_s=PATIENCE_S)
        await _quiet(proxy, [stored])
        again = proxy.of(stored).since(placed)
    names = [f"copy-{number:05}" for number in range(num_jobs)]
    async with world() as here, writer(here.server) as bare:
        copies: list[Copy] = []

        async def begin(name: str) -> None:
            copy = await bare.begin(placed, name)
            await bare.go_on(copy, placed)
            copies.append(copy)

        await each(names, begin, at_once=_AT_ONCE)
        await here.board.until(lambda: len(here.board.jobs) == num_jobs, "the board has all", timeout_s=PATIENCE_S)
        await here.delete_pods([pod for seen in here.board.jobs.values() for pod in list(seen.pods)])
        with using(*here.server_pids) as server:
            await each(copies, lambda copy: bare.go_on(copy, again), at_once=_AT_ONCE)
    return {
        "jobs": num_jobs,
        "took_s": server.wall_s,
        "server_s": server.processor_s,
        "writes_a_job": len(again.writes),
    }


async def record(here: World, *jobs: dict[str, Any], quiet_s: float = _QUIET_S) -> list[Recording]:
    """Give the operator one job after another, and return what it wrote for each until none was written for a while.

    A job follows when the one before is let go, or waits.
    """
    async with recording(here) as proxy:
        stored = [await _decided(here, job) for job in jobs]
        await _quiet(proxy, stored, quiet_s)
        return [proxy.of(job) for job in stored]


@asynccontextmanager
async def recording(here: World) -> AsyncIterator[RecordingProxy]:
    """Run an operator for the block whose writes are recorded."""
    with RecordingProxy(here.server) as proxy:
        async with operator(here, kubeconfig=proxy.kubeconfig(), name="recorded"):
            yield proxy


async def _decided(here: World, job: dict[str, Any]) -> dict[str, Any]:
    """Create a job and wait until it is let go, or waits; return it as it was stored first."""
    stored = await here.api.request("POST", JOBS, body=job)
    seen = here.board.jobs[job["metadata"]["name"]]
    await here.board.until(lambda: seen.let_go or seen.sentence, "a lone job is decided", timeout_s=PATIENCE_S)
    return stored


async def _quiet(proxy: RecordingProxy, jobs: list[dict[str, Any]], quiet_s: float = _QUIET_S) -> None:
    known, since = 0, time.monotonic()
    while time.monotonic() - since < quiet_s:
        await asyncio.sleep(_QUIET_S / 10)
        written = sum(len(proxy.of(job).writes) for job in jobs)
        if written != known:
            known, since = written, time.monotonic()
