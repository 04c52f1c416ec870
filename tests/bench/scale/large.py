"""One job of thousands of ranks on a cluster that has room for it."""

from __future__ import annotations

import time

from board import JOBS, NAMESPACE
from operatorprocess import job
from world import PATIENCE_S, Operator, World

_STAGES = 16
_NAME = "large"


async def large(here: World, running: Operator, num_ranks: int) -> dict[str, float]:
    """Return how long a job of that many ranks takes from its creation until all its pods are let go."""
    replicas = max(1, num_ranks // _STAGES)
    parallelism = {"pipeline": _STAGES, "data": replicas}
    with running.measured() as measured:
        begun = time.monotonic()
        await here.api.request("POST", JOBS, body=job(NAMESPACE, _NAME, stages=_STAGES, parallelism=parallelism))
        seen = here.board.jobs[_NAME]
        await here.board.until(lambda: seen.let_go, f"{_NAME} is let go", timeout_s=PATIENCE_S)
        let_go_s = (seen.let_go or 0.0) - begun
    return {"ranks": len(seen.pods), "let_go_s": let_go_s, **await measured.figures()}
