"""Room by priority: which running jobs are asked to make way for one that waits, so that it surely fits then.

Whole jobs, none of a higher priority if lower ones suffice, as few as possible, and of equals the youngest; none at all
unless the job fits once they are gone.
"""

from collections.abc import Sequence
from itertools import groupby

from pipelinejob_operator.admission.capacity import Claim
from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.fewest import fewest
from pipelinejob_operator.admission.line.asking import may_ask
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.objects.job import Job


def victims(job: Job, room: Room, kept: Sequence[Claim], chooser: Chooser) -> tuple[Job, ...] | None:
    """Choose who has to make way so that the job fits; none if it suffices to wait for those who already leave.

    Returns None if the job would not fit even then, or may ask nobody.
    """
    priorities = room.order.priorities
    lower = sorted((each for each in room.running if may_ask(job, each, priorities)), key=room.order.rank)
    levels = [list(level) for _, level in groupby(reversed(lower), key=lambda each: priorities.of(each).value)]
    found = fewest(levels, lambda gone: chooser.fits(job, room.after(gone, kept=kept)))
    return None if found is None else found[0]
