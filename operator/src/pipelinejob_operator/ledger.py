"""Promises of room that the cache may not show yet: what keeps two jobs from being given the same GPU.

The truth stands in the jobs' status. A cache shows it a moment later; for that moment, and only for that, a promise is
remembered here. Losing the ledger loses nothing but the moment: a new process fills its caches before its first pass.
"""

from collections.abc import Iterable, Iterator

from pipelinejob_operator.capacity import Promise, promise_of
from pipelinejob_operator.controller_settings import ControllerSettings
from pipelinejob_operator.job import Job


class Ledger:
    """What was promised lately."""

    def __init__(self) -> None:
        self._promises: dict[str, Promise] = {}

    def write(self, promise: Promise) -> Promise | None:
        """Remember a promise before it is written to the job's status; give the one that stood there."""
        before = self._promises.get(promise.uid)
        self._promises[promise.uid] = promise
        return before

    def restore(self, uid: str, before: Promise | None) -> None:
        """Take a promise back that was certainly not written."""
        if before is None:
            self._promises.pop(uid, None)
        else:
            self._promises[uid] = before

    def promises(self, jobs: Iterable[Job], settings: ControllerSettings) -> Iterator[Promise]:
        """Give what all jobs hold or were promised; forget what the jobs themselves show by now."""
        seen = {job.uid: job for job in jobs}
        for uid in self._promises.keys() - seen.keys():
            del self._promises[uid]
        for uid, job in seen.items():
            promise = self._promises.get(uid)
            if promise is not None and _shows(job, promise):
                del self._promises[uid]
                promise = None
            yield promise or promise_of(job, settings)


def _shows(job: Job, promise: Promise) -> bool:
    is_same_attempt = job.status.attempt == promise.attempt
    return job.is_finished or job.status.attempt > promise.attempt or (is_same_attempt and job.is_placed)
