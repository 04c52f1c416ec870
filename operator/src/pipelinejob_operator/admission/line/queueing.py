"""Who waits for room, and whose turn it is: higher priority first, then age; nobody waits for what can never fit."""

from dataclasses import dataclass

from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType
from pipelinejob_operator.admission.line.priority import NO_PRIORITY_CLASS, Priorities
from pipelinejob_operator.admission.line.quota import WAITS_FOR_KUEUE
from pipelinejob_operator.objects.job import Job, condition

NO_ROOM = "NoRoom"
NOT_ITS_TURN = "NotItsTurn"
FAR_BACK = "FarBack"  # many wait before it
NEVER_FITS = "NeverFits"
NO_PLAN = "NoPlan"  # what the cluster is said to be does not allow for one, or not on the nodes that are free
NO_VOLUME = "NoVolume"  # a claim that its pods mount does not exist
NOT_ADMITTED = "NotAdmitted"  # what admission makes of its pods cannot be told now
PREEMPTED = "Preempted"  # it was told to make way, and waits in its place of the line
PREEMPTING = "Preempting"  # others were told to make way for it
# Reasons of PLACED with which a job waits for something other than room.
BLOCKS_NOBODY = WAITS_FOR_KUEUE | {
    NEVER_FITS,
    NO_PLAN,
    NO_VOLUME,
    NOT_ADMITTED,
    NO_PRIORITY_CLASS,
    "GangTimeout",
    "NoLongerFits",
    "Refused",
    "PodsStuck",
    "NamesTaken",
}

Rank = tuple[int, str, str, str]  # what jobs are sorted by: the negative priority, since when, namespace, name


def is_waiting(job: Job) -> bool:
    """Tell whether the job wants room and has none: worth a pass whenever room may have come free."""
    if job.spec is None or job.spec.is_open or job.is_finished or job.is_deleting or job.spec.suspend:
        return False
    return not (job.is_placed or job.is_service)


def is_in_line(job: Job) -> bool:
    """Tell whether those behind have to mind this job: it waits for room, and nothing else keeps it."""
    if not is_waiting(job) or job.status.not_before is not None or job.binds_late:
        return False
    placed = condition(job.status, ConditionType.PLACED)
    return placed is None or placed.status is not ConditionStatus.FALSE or placed.reason not in BLOCKS_NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of jobs, waiting or not. One that made way stands where it always stood, one that was resumed anew."""

    priorities: Priorities

    def rank(self, job: Job) -> Rank:
        """Return what jobs are sorted by: the first in line has the least."""
        return (-self.priorities.of(job).value, job.status.resumed_time or job.created, job.key.namespace, job.key.name)

    def why_ahead(self, first: Job, job: Job) -> str:
        """Say why `first` comes first."""
        higher, lower = self.priorities.of(first).value, self.priorities.of(job).value
        return f"has priority {higher} over {lower}" if higher > lower else "is older"
