"""Who asked whom to make way. Asking is one field of the asker's own status; the job that is asked sees it there.

So nothing is lost if the operator dies in between, and an asker that goes away before it was heard
has asked nothing.
"""

from collections.abc import Iterable, Mapping

from pipelinejob.spec.reported.waiting import AskedJob
from pipelinejob_operator.admission.line.priority import Priorities
from pipelinejob_operator.admission.line.queueing import is_in_line
from pipelinejob_operator.objects.job import Job


def ask(job: Job) -> AskedJob:
    """Write down that a job, as it runs now, is asked to make way."""
    return AskedJob(name=str(job.key), uid=job.uid, attempt=job.status.attempt)


def asked_to_leave(jobs: Iterable[Job], priorities: Priorities) -> Mapping[str, Job]:
    """Return who makes way for whom: the asker by the uid of the job that it asked, while that still holds nodes."""
    known = list(jobs)
    placed = {job.uid: job for job in known if job.is_placed and not job.is_finished}
    asked: dict[str, Job] = {}
    for asker in (job for job in known if job.status.preempts and is_in_line(job)):
        for each in asker.status.preempts:
            job = placed.get(each.uid)
            if job is not None and job.status.attempt == each.attempt and may_ask(asker, job, priorities):
                asked.setdefault(each.uid, asker)
    return asked


def may_ask(asker: Job, job: Job, priorities: Priorities) -> bool:
    """Tell whether one may take the other's room: only a strictly higher one, so that two never take turns.

    What has a Kueue queue is Kueue's to preempt, and preempts by Kueue alone.
    """
    if asker.queue is not None or job.queue is not None:
        return False
    higher, lower = priorities.of(asker), priorities.of(job)
    return higher.preempts and higher.value > lower.value
