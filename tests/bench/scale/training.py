"""Jobs that were let go begin to train without a machine: their pods say so, and somebody answers for them.

A pod's address is one of loopback, by its stage; all pods of a stage are answered for by one
server there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from board import PODS
from pipelinejob.base import names
from world import STAGES, World, each

_AT_ONCE = 16
_STRATEGIC = "application/strategic-merge-patch+json"


@asynccontextmanager
async def trainers() -> AsyncIterator[None]:
    """Answer for the trainers of all stages during the block."""
    async with AsyncExitStack() as stack:
        for stage in range(STAGES):
            application = web.Application()
            application.router.add_get("/progress", _answer(stage))
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, _address(stage), names.PORT_METRICS).start()
        yield


async def train(here: World, jobs: Sequence[str]) -> None:
    """Bind the pods of these jobs to their nodes, and have them run and be ready."""
    work = [
        (pod, stage, here.board.jobs[name].nodes[stage])
        for name in jobs
        for stage, pod in enumerate(sorted(here.board.jobs[name].pods))
    ]
    await each(work, lambda one: _run(here, *one), at_once=_AT_ONCE)


async def _run(here: World, pod: str, stage: int, node: str) -> None:
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    await here.api.request("POST", f"{PODS}/{pod}/binding", body=binding)
    body = {"status": _running(_address(stage))}
    await here.api.request("PATCH", f"{PODS}/{pod}/status", body=body, content_type=_STRATEGIC)


def _running(address: str) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    container = {
        "name": names.CONTAINER_TRAINER, "image": "example.org/trainer:test", "imageID": "", "ready": True,
        "started": True, "restartCount": 0, "state": {"running": {"startedAt": now}},
    }  # fmt: skip
    kinds = ("Initialized", "Ready", "ContainersReady")
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds]
    return {
        "phase": "Running", "startTime": now, "conditions": conditions, "containerStatuses": [container],
        "podIP": address, "podIPs": [{"ip": address}],
    }  # fmt: skip


def _address(stage: int) -> str:
    return f"127.94.0.{stage + 1}"


def _answer(stage: int) -> Any:
    started = datetime.now(UTC)

    async def answer(_: web.Request) -> web.Response:
        step = int((datetime.now(UTC) - started).total_seconds() * 10)
        progress = {
            "replica": 0, "stage": stage, "attempt": 1, "phase": "Training", "step": step, "loss": 5.5 / (1 + step),
            "tokensPerS": 1000.0, "stepS": 0.1, "bubbleRatio": 0.25, "utilizationRatio": 0.7, "memoryBytes": 2**20,
        }  # fmt: skip
        return web.Response(text=json.dumps(progress), content_type="application/json")

    return answer
