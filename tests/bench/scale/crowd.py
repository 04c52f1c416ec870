"""Many small jobs at once: created together, then left alone, then some of them training."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress

from training import train, trainers
from world import PATIENCE_S, ROOM, STAGES, Operator, World, small_job

_REST_S = 30.0
_REQUESTS_AT_REST = 2.0  # a second: the Lease, and watches that begin anew
_SETTLING_S = 10.0
_SHARE_TRAINING = 0.25  # of the jobs that were let go
_REQUESTS = "rest_client_requests_total"


async def burst(here: World, running: Operator, num_jobs: int) -> dict[str, float]:
    """Create jobs at once, more than there is room for, and wait until those that fit are let go and the rest told."""
    fit, jobs = min(num_jobs, ROOM), here.board.jobs
    requests = await running.metric(_REQUESTS)
    with running.measured() as measured, suppress(TimeoutError):
        begun = time.monotonic()
        await here.create(small_job(f"burst-{number:05}") for number in range(num_jobs))
        created_s = time.monotonic() - begun
        await here.board.until(
            lambda: len(_let_go(here)) >= fit and all(seen.let_go or seen.sentence for seen in jobs.values()),
            "those that fit are let go, and the others told why they wait",
            timeout_s=PATIENCE_S,
        )
    let_go_s = max((seen.let_go - begun for seen in jobs.values() if seen.let_go), default=PATIENCE_S)
    waiting = [seen for seen in jobs.values() if seen.let_go is None]
    told_s = [seen.told - begun for seen in waiting if seen.told is not None]
    num_let_go = num_jobs - len(waiting)
    return {
        "jobs": num_jobs, "created_s": created_s, "let_go": num_let_go, "not_let_go": fit - num_let_go,
        "let_go_s": let_go_s, "jobs_per_s": num_let_go / let_go_s, "pods_per_s": STAGES * num_let_go / let_go_s,
        "told": len(told_s), "not_told": len(waiting) - len(told_s), "told_s": max(told_s, default=0.0),
        "requests_a_job": (await running.metric(_REQUESTS) - requests) / num_jobs, **await measured.figures(),
    }  # fmt: skip


async def rest(running: Operator) -> dict[str, float]:
    """Change nothing, wait until all is written that came before, and see what the operator takes."""
    settling_s = await _settle(running)
    with running.measured() as measured:
        await asyncio.sleep(_REST_S)
    return {"settling_s": settling_s, **await measured.figures()}


async def _settle(running: Operator) -> float:
    """Wait until the operator sends next to no requests; return how long that took."""
    begun, sent = time.monotonic(), -math.inf
    while time.monotonic() - begun < PATIENCE_S:
        now = await running.metric(_REQUESTS)
        if now - sent <= _SETTLING_S * _REQUESTS_AT_REST:
            break
        sent = now
        await asyncio.sleep(_SETTLING_S)
    return time.monotonic() - begun


async def rest_training(here: World, running: Operator) -> dict[str, float]:
    """Have a share of the jobs train, and change nothing else."""
    names = _let_go(here)
    async with trainers():
        await train(here, names[: max(1, int(len(names) * _SHARE_TRAINING))])
        figures = await rest(running)
    return {"training": sum(seen.state == "Training" for seen in here.board.jobs.values()), **figures}


def _let_go(here: World) -> list[str]:
    return [name for name, seen in here.board.jobs.items() if seen.let_go]
