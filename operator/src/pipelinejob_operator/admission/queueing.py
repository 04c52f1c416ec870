"""Who waits for room, and whose turn it is: the oldest first, and nobody waits for one who could never have it."""

from collections.abc import Iterable

from pipelinejob.status import ConditionStatus, ConditionType
from pipelinejob_operator.objects.job import Job, condition

NO_ROOM = "NoRoom"
NOT_ITS_TURN = "NotItsTurn"
NEVER_FITS = "NeverFits"
# Reasons of PLACED with which a job waits for something other than room.
_BLOCKS_NOBODY = frozenset({NEVER_FITS, "GangTimeout", "Refused", "PodsStuck", "NamesTaken"})


def is_waiting(job: Job) -> bool:
    """Say whether the job wants room and has none: worth a pass whenever room may have come free."""
    if job.spec is None or job.is_finished or job.is_deleting or job.spec.suspend:
        return False
    return not job.is_placed


def ahead_of(job: Job, jobs: Iterable[Job]) -> list[Job]:
    """Give the jobs whose turn comes before this one's, in their order."""
    before = [other for other in jobs if other.uid != job.uid and _order(other) < _order(job) and _blocks(other)]
    return sorted(before, key=_order)


def _blocks(job: Job) -> bool:
    placed = condition(job.status, ConditionType.PLACED)
    is_set_aside = placed is not None and placed.status is ConditionStatus.FALSE and placed.reason in _BLOCKS_NOBODY
    return is_waiting(job) and job.status.not_before is None and not is_set_aside


def _order(job: Job) -> tuple[str, str, str]:
    return (job.created, job.key.namespace, job.key.name)
