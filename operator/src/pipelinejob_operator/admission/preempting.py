"""Room by priority: which running jobs are asked to make way for one that waits, so that it surely fits then.

Whole jobs, none of a higher priority if lower ones suffice, as few as possible, and of equals the
youngest; none at all unless the job fits once they are gone.
"""

from collections.abc import Sequence
from itertools import groupby

from pipelinejob_operator.admission.capacity import Claim
from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.fewest import fewest
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.objects.job import Job


def victims(job: Job, room: Room, kept: Sequence[Claim], chooser: Chooser) -> tuple[Job, ...] | None:
    """Choose who has to make way so that the job fits; none if it suffices to wait for those who already leave.

    Returns None if the job would not fit even then, or may ask nobody.
    """
    levels = [jobs for value, jobs in room.derive("levels", lambda: _levels(room)) if _may_ask(job, value, room)]
    found = fewest(levels, lambda gone: chooser.fits(job, room.after(gone, kept=kept)))
    return None if found is None else found[0]


def _may_ask(job: Job, value: int, room: Room) -> bool:
    """Tell whether a job may ask those of a priority; `may_ask` for a level as a whole."""
    own = room.order.priorities.of(job)
    return job.queue is None and own.preempts and own.value > value


def _levels(room: Room) -> list[tuple[int, list[Job]]]:
    """Return the running jobs that may be asked at all, by priority: the lowest, and of equals the youngest, first."""
    running = sorted((each for each in room.running if each.queue is None), key=room.order.rank, reverse=True)
    priorities = room.order.priorities
    return [(value, list(level)) for value, level in groupby(running, key=lambda each: priorities.of(each).value)]
