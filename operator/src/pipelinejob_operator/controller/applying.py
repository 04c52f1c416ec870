"""Carries out what was decided: the status first, if it differs, then what follows from it."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final

import structlog

from pipelinejob_operator.cluster import Cluster, ForbiddenError, InvalidError, NameTakenError, Object
from pipelinejob_operator.controller.decide import Decision, Refusal
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.status_writing import StatusWriter
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.job import Job

MAX_WRITES_AT_ONCE: Final = 16
_log = structlog.get_logger(__name__)


class Applier:
    """Writes to the cluster what decisions say, and nothing that stands already."""

    def __init__(self, cluster: Cluster, statuses: StatusWriter) -> None:
        self._cluster = cluster
        self._statuses = statuses

    async def carry_out(self, observed: Observed, decision: Decision) -> Refusal | None:
        """Write the status, if it differs, then what follows from it.

        Returns why the cluster refused a part of the gang, which ends the work there. Raises
        ClusterError where any other write failed.
        """
        await self.write_status(observed.job, decision)
        await self._delete(decision)
        try:
            await self._apply(decision.apply)
            await _at_once(self._cluster.change_pod(pod, changes) for pod, changes in decision.change)
        except (ForbiddenError, InvalidError, NameTakenError) as error:
            return error
        for item, status in decision.patch:
            await self._cluster.patch_status(item, status)
        await _at_once(self._cluster.tell_rank(pod, rank) for pod, rank in decision.given)
        if decision.meets is not None:
            members = [pod.raw for rank, pod in observed.current.items() if not rank.is_spare]
            await _at_once(self._cluster.tell(pod, decision.meets) for pod in members)
        try:
            await _at_once(self._cluster.change_pod(pod, changes) for pod, changes in decision.label)
        except (ForbiddenError, InvalidError) as error:  # a policy of the cluster's; the stage trains without
            _log.warning("a spare's pod has not got the labels of its stage", job=str(observed.job.key), why=str(error))
        return None

    async def take_back(self, job: Job, decision: Decision) -> None:
        """Write the status, and delete what the decision names: a partial gang holds nothing."""
        await self.write_status(job, decision)
        await self._delete(decision)

    async def write_status(self, job: Job, decision: Decision | Turn) -> None:
        """Write the status, if it differs, and tell of what it changes in events."""
        if await self._statuses.write(job, decision.status):
            for event in decision.events:
                await self._cluster.emit(job.raw, event)

    async def _delete(self, decision: Decision) -> None:
        for reference in decision.delete:
            await self._cluster.delete(reference)

    async def _apply(self, items: Sequence[Object]) -> None:
        # What pods mount and are named by comes before them.
        for item in items:
            if item["kind"] != "Pod":
                await self._cluster.apply(item)
        await _at_once(self._cluster.apply(item) for item in items if item["kind"] == "Pod")


async def _at_once(writes: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of these, a few at a time, whatever becomes of each; raise what the first that failed raised."""
    limit = asyncio.Semaphore(MAX_WRITES_AT_ONCE)

    async def write(each: Coroutine[Any, Any, None]) -> None:
        async with limit:
            await each

    results = await asyncio.gather(*(write(each) for each in writes), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
