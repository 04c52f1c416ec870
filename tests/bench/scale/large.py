"""One job of thousands of ranks on a cluster that has room for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from board import JOBS, NAMESPACE
from support.api_server.operatorprocess import job
from world import GPUS_A_NODE, NUM_NODES, PATIENCE_S, Operator, World

_STAGES = 16
_NAME = "large"
_GPT3 = Path(__file__).parents[3] / "examples" / "gpt3-3d.yaml"


async def large(here: World, running: Operator, num_ranks: int) -> dict[str, float]:
    """Return how long a job of that many ranks takes from its creation until all its pods are let go."""
    return await _let_go(here, running, large_job(num_ranks))


def large_job(num_ranks: int) -> dict[str, Any]:
    """Make a job of that many ranks."""
    parallelism = {"pipeline": _STAGES, "data": max(1, num_ranks // _STAGES)}
    return job(NAMESPACE, _NAME, stages=_STAGES, parallelism=parallelism)


async def gpt3(here: World, running: Operator) -> dict[str, float]:
    """Return the same of the example that takes all GPUs: 512 pods of 8, and how large its status and plan are."""
    manifest = yaml.safe_load(_GPT3.read_text())
    name = manifest["metadata"]["name"]
    figures = await _let_go(here, running, {**manifest, "metadata": {"name": name, "namespace": NAMESPACE}})
    stored = here.server.get("pipelinejob", "-n", NAMESPACE, name)
    plan = here.server.get("configmap", "-n", NAMESPACE, f"{name}-plan")
    pods = here.server.get("pods", "-n", NAMESPACE)["items"]
    asked = [int(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for pod in pods]
    placed = {stage["node"] for stage in stored["status"]["stages"]}
    return {
        **figures,
        "gpus_short": NUM_NODES * GPUS_A_NODE - sum(asked),
        "nodes_short": NUM_NODES - len(placed),
        "status_kib": _kib(stored["status"]),
        "plan_kib": _kib(plan["data"]),
    }


async def _let_go(here: World, running: Operator, manifest: dict[str, Any]) -> dict[str, float]:
    with running.measured() as measured:
        begun = time.monotonic()
        await here.api.request("POST", JOBS, body=manifest)
        seen = here.board.jobs[manifest["metadata"]["name"]]
        await here.board.until(lambda: seen.let_go, f"{_NAME} is let go", timeout_s=PATIENCE_S)
        let_go_s = (seen.let_go or 0.0) - begun
    return {"ranks": len(seen.pods), "let_go_s": let_go_s, **await measured.figures()}


def _kib(item: object) -> float:
    return len(str(item)) / 1024
