"""Promises of room that the cache may not show yet: what keeps two jobs from being given the same GPU.

The truth stands in the jobs' status. A cache shows it a moment later; for that moment, and only for that, a promise is
remembered here. Losing the ledger loses nothing but the moment: a new process fills its caches before its first pass.
"""

from collections.abc import Iterable

from pipelinejob_operator.admission.capacity import Promise, promise_of
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job


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

    def promises(self, jobs: Iterable[Job], settings: ControllerSettings) -> dict[str, Promise]:
        """Give what jobs hold or were promised, by uid; forget what the jobs themselves show by now."""
        seen = {job.uid: job for job in jobs}
        self._promises = {
            uid: promise
            for uid, promise in self._promises.items()
            if uid in seen and not _shows(seen[uid], promise)
        }  # fmt: skip
        shown = {uid: promise_of(job, settings) for uid, job in seen.items()}
        return {uid: promise for uid, promise in shown.items() if promise.claims} | self._promises


def _shows(job: Job, promise: Promise) -> bool:
    if job.generation > promise.generation:  # it was written before the spec changed, and is seen, or never
        return True
    is_same_attempt = job.status.attempt == promise.attempt
    return job.is_finished or job.status.attempt > promise.attempt or (is_same_attempt and job.is_placed)
