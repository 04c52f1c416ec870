"""One job on this machine to its end: the operator's own reconcile, called until nothing is left to do."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.spec.reported.conditions import State
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import ClusterError, Key
from pipelinejob_operator.controller.reconcile import Controller, ControllerSettings
from pipelinejob_operator.local import interruption
from pipelinejob_operator.local.cluster import LocalCluster
from pipelinejob_operator.local.display import Display
from pipelinejob_operator.local.front import common_front
from pipelinejob_operator.local.node.machine import Machine
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.scaling import Wish, choice_of, scalable, scaled
from pipelinejob_operator.objects.job import read_job
from pipelinejob_operator.report.run_view import Pace, view

_SETTINGS = ControllerSettings(
    trainer_image="this-machine",
    grace_s=60,
    progress_interval_s=2.0,
    root_cause_wait_s=2.0,
    restart_backoff_s=1.0,
    max_restart_backoff_s=30.0,
    keeps_spares=True,
    shares_processors=True,
)
_LOOK_EVERY_S = 0.5
_RETRY_S = 1.0
_ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.SUSPENDED, State.WAITING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended; `was_killed` if somebody would not wait for a checkpoint."""

    status: PipelineJobStatus
    plan: Plan  # by which it ran last
    checkpoints: Path
    was_interrupted: bool
    was_killed: bool


class LocalRun:
    """Runs one job. The first SIGINT or SIGTERM suspends it, the second ends everything at once."""

    def __init__(
        self,
        job: Mapping[str, Any],
        folder: RunFolder,
        machine: Machine,
        display: Display,
        *,
        stopping: str = "Stopping: the stages write a checkpoint (again Ctrl-C: stop at once, without one)",
    ) -> None:
        """Prepare a run; `stopping` is said when it is interrupted for the first time."""
        self._job = job
        self._key = Key(job["metadata"]["namespace"], job["metadata"]["name"])
        self._folder = folder
        self._display = display
        self._changed = asyncio.Event()
        self._killed = asyncio.Event()
        self._interruptions = 0
        self._stopping = stopping
        self._pace = Pace()
        self._cluster = LocalCluster(folder, machine, on_change=self._changed.set, on_event=display.event)

    async def run(self, plan: Plan, profile: Profile) -> Ending:
        """Run the job to its end or its suspension; no process is left after it."""
        controller = Controller(
            self._cluster, settings=_SETTINGS, clock=lambda: datetime.now(UTC), profile_source=lambda _: profile
        )
        with interruption.calling(self._interrupt):
            async with self._cluster:
                await self._cluster.apply(self._job)
                async with self._front():
                    watching = asyncio.create_task(self._watch(plan))
                    try:
                        await self._reconcile(controller)
                    finally:
                        watching.cancel()
                checkpoints, plan = self._cluster.checkpoints(self._key), self._latest(plan)
        return Ending(
            status=self._status(),
            plan=plan,
            checkpoints=checkpoints,
            was_interrupted=self._interruptions > 0,
            was_killed=self._killed.is_set(),
        )

    async def _reconcile(self, controller: Controller) -> None:
        while not self._killed.is_set():
            self._changed.clear()
            if self._interruptions:
                await self._suspend()
            delays = [await self._pass(controller, key) for key in self._keys()]
            if self._is_over():
                return
            await self._until_something_changes(min((each for each in delays if each is not None), default=None))

    async def _pass(self, controller: Controller, key: Key) -> float | None:
        try:
            return await controller.reconcile(key)
        except ClusterError as error:
            self._display.note(f"trying again: {error}")
            return _RETRY_S

    def _keys(self) -> list[Key]:
        """Return the job's key, and those of its chains."""
        chains = (each["metadata"] for each in self._cluster.chains(self._key))
        return [self._key, *(Key(each["namespace"], each["name"]) for each in chains)]

    def _front(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Have one address for all chains of a job that serves in several."""
        job = read_job(self._cluster.job(self._key) or self._job)
        if not job.is_service or job.spec is None or job.spec.serving is None:
            return contextlib.nullcontext()
        return common_front(job.spec.serving.port, self._cluster.fronts)

    def _pods(self) -> list[Mapping[str, Any]]:
        return [pod for key in self._keys() for pod in self._cluster.pods(key)]

    def _is_over(self) -> bool:
        """Tell whether the job has ended, is suspended, or waits for what this machine will never have."""
        if self._status().state not in _ENDED:
            return False
        return not any(pod["status"]["phase"] == "Running" for pod in self._pods())

    async def _until_something_changes(self, delay: float | None) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._changed, self._killed)]
        try:
            await asyncio.wait(waits, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _suspend(self) -> None:
        job = self._cluster.job(self._key)
        if job and not job["spec"].get("suspend"):
            await self._cluster.apply({**job, "spec": {**job["spec"], "suspend": True}})

    def _interrupt(self) -> None:
        self._interruptions += 1
        if self._interruptions == 1:
            self._display.note(self._stopping)
        else:
            self._cluster.kill_all()
            self._killed.set()
        self._changed.set()

    async def _watch(self, plan: Plan) -> None:
        while True:
            await self._show(plan)
            await self._scale()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _scale(self) -> None:
        """Have the job ask for the shape that `pipelinejob scale` was told."""
        wish, job = self._folder.take_wish(), self._cluster.job(self._key)
        if wish is None or job is None:
            return
        choice = choice_of(job)
        if choice is not None:
            await self._cluster.write_status(job, {**(job.get("status") or {}), "chosen": choice.dump()})
        await self._cluster.apply(scaled(scalable(job), Wish.model_validate_json(wish)))

    async def _show(self, plan: Plan) -> None:
        accounts = await asyncio.gather(*(self._cluster.progress(pod) for pod in self._pods()))
        known = [account for account in accounts if account is not None]
        self._display.update(view(self._latest(plan), self._status(), known, pace=self._pace, now=time.monotonic()))

    def _latest(self, plan: Plan) -> Plan:
        """Return the plan that the stages run by, where it has other layers or replicas than the first."""
        now = self._cluster.plan(self._key)
        shape = (plan.cuts, plan.parallelism, plan.schedule)
        is_other = now is not None and (now.cuts, now.parallelism, now.schedule) != shape
        return now if now is not None and is_other else plan

    def _status(self) -> PipelineJobStatus:
        job = self._cluster.job(self._key)
        return PipelineJobStatus.model_validate((job or {}).get("status") or {})
