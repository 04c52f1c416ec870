"""Writes statuses, each as large as the cluster takes it: what is refused for its size is written shorter."""

from typing import Final

from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import Cluster, Event, Key, TooLargeError
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.status_size import LIMITS, bounded

_NOTHING: Final = PipelineJobStatus().dump()  # says no more than that there is no status yet


class StatusWriter:
    """Remembers, for as long as it lives, how much the cluster took of a job's status, so that it asks that once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._limits: dict[Key, tuple[str, tuple[int, ...]]] = {}  # by uid, those that are still worth trying

    def stored(self, job: Job, status: PipelineJobStatus) -> PipelineJobStatus:
        """Return the status as it would be stored."""
        return bounded(status, self._of(job)[0])

    async def write(self, job: Job, status: PipelineJobStatus) -> bool:
        """Write the status; False if that is what stands.

        Raises TooLargeError if the cluster takes not even the shortest.
        """
        limits, stands = self._of(job), job.raw.get("status") or _NOTHING
        for index, limit in enumerate(limits):
            dumped = bounded(status, limit).dump()
            if dumped == stands:
                return False
            try:
                await self._cluster.write_status(job.raw, dumped)
            except TooLargeError as error:
                if index + 1 == len(limits):
                    await self._cluster.emit(job.raw, _refused(error))
                    raise
                self._limits[job.key] = (job.uid, limits[index + 1 :])
            else:
                return True
        return False

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._limits.pop(key, None)

    def _of(self, job: Job) -> tuple[int, ...]:
        uid, limits = self._limits.get(job.key, (job.uid, LIMITS))
        return limits if uid == job.uid else LIMITS


def _refused(error: TooLargeError) -> Event:
    message = f"the status is too large to be stored, even at its shortest: {error}; make spec.template smaller"
    return Event(type="Warning", reason="StatusTooLarge", message=message)
