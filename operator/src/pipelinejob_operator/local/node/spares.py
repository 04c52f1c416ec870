"""Warm processes on this machine: they have imported what a stage needs, and wait to be told whose place to take."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelinejob_operator.local.node.stage_process import StageProcess

_COMMAND = (sys.executable, "-m", "pipelinejob_trainer", "spare")


class Spares:
    """Warm processes; each is used once.

    New ones are started by `keep`, which is called when a stage is up: before, they would only
    slow it down.
    """

    def __init__(self, *, environment: Mapping[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self._warm: list[StageProcess] = []
        self._starting: set[asyncio.Task[None]] = set()

    def keep(self, count: int) -> None:
        """See that there are so many, warm or on their way."""
        self._warm = [spare for spare in self._warm if spare.is_running]
        missing = count - len(self._warm) - len(self._starting)
        for _ in range(missing):
            task = asyncio.get_running_loop().create_task(self._start())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    def take(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> StageProcess | None:
        """Let a warm process become what `command` would start; None if there is none, or it could not.

        Threads are as many as it was started with.
        """
        if tuple(command) != (sys.executable, "-m", "pipelinejob_trainer", "run"):
            return None
        self._warm = [spare for spare in self._warm if spare.is_running]
        if not self._warm:
            return None
        spare = self._warm.pop(0)
        log.parent.mkdir(parents=True, exist_ok=True)
        spare.tell(json.dumps({"environment": dict(environment), "log": str(log)}))
        return spare

    def kill(self) -> None:
        """End all that were not used."""
        for task in self._starting:
            task.cancel()
        for spare in self._warm:
            spare.kill()

    async def _start(self) -> None:
        self._warm.append(
            await StageProcess.start(_COMMAND, environment=self._environment, log=self._log, is_told=True)
        )
