"""Who may go past those ahead: only a job that fits beside what is kept for them.

Nobody knows how long jobs run. So a job that waits has room kept for it that does not depend on any job that went past
it: on what is free, and on what the fewest jobs hold that were there first. Those are named in its status
(`waitsFor`), and as long as it would fit once they are gone, they stay the same. A job behind it takes only what is
free beside. Therefore

- a job that waits starts at the latest when the jobs that it waits for have ended: whoever goes past it, however long
  that runs, is not among them;
- nobody starves but by priority: jobs that were there first are finite in number, and none is ever added but those
  that stand higher in the line.

(EASY backfilling after Lifka 1995, with the end of named jobs in place of their promised run times.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipelinejob.status import ConditionStatus, ConditionType
from pipelinejob_operator.admission.capacity import Claim, minus
from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.fewest import fewest
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.objects.job import Job, condition

MAX_PASSED = 8  # each costs a placement or more; behind a longer line a job waits, as it would without backfill


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is kept for a job that waits, and the jobs that have to end before it can start there."""

    claims: tuple[Claim, ...]
    waits_for: tuple[Job, ...] = ()


def kept_for(ahead: Sequence[Job], room: Room, chooser: Chooser) -> tuple[Claim, ...] | None:
    """Give what those ahead keep, in their order; None if nobody may go past them."""
    if len(ahead) > MAX_PASSED:
        return None
    kept: list[Claim] = []
    for job in ahead:
        reservation = reserve(job, room, kept, chooser)
        if reservation is None:
            return None
        kept += reservation.claims
    return tuple(kept)


def reserve(job: Job, room: Room, kept: Sequence[Claim], chooser: Chooser) -> Reservation | None:
    """Keep room for a job, beside what is kept for those ahead of it; None if only those who went past it have it."""
    first = _there_first(job, room)
    known = tuple(each for each in first if str(each.key) in job.status.waits_for)
    if chooser.fits(job, room.after(known, kept=kept)) is not None:
        return _kept_where_others_leave(job, known, room, kept, chooser)
    found = fewest([first], lambda gone: chooser.fits(job, room.after(gone, kept=kept)))
    if found is not None:
        return _kept_where_others_leave(job, found[0], room, kept, chooser)
    # It fits beside none of those ahead, so it waits for their end, too: they are there first, like all that run.
    if (claims := chooser.fits(job, room.after(first))) is not None:
        return Reservation(claims=claims, waits_for=first)
    passed = [each for each in room.running if each not in first]
    others_gone = minus(room.empty, (claim for each in passed for claim in room.held[each.uid]))
    claims = chooser.fits(job, others_gone)  # pods that are no PipelineJob's have to go
    return None if claims is None else Reservation(claims=claims, waits_for=first)


def _kept_where_others_leave(
    job: Job, gone: tuple[Job, ...], room: Room, kept: Sequence[Claim], chooser: Chooser
) -> Reservation | None:
    """Keep, if it suffices, only the nodes that are not free yet: it starts no later for that, and more can go past."""
    after = room.after(gone, kept=kept)
    awaited = {claim.node for each in gone for claim in room.held[each.uid]}
    nothing = {node: dict.fromkeys(amounts, Fraction(0)) for node, amounts in after.items() if node not in awaited}
    claims = chooser.fits(job, {**after, **nothing}) or chooser.fits(job, after)
    return None if claims is None else Reservation(claims=claims, waits_for=gone)


def _there_first(job: Job, room: Room) -> tuple[Job, ...]:
    """Give the running jobs that did not go past this one, those that are expected to end soonest first.

    Kubernetes tells time in whole seconds. Who began to run in the second in which this one began to wait counts as
    there first: such jobs are few, and none is added later.
    """
    own, since = room.order.rank(job), _waiting_since(job)
    first = [each for each in room.running if room.order.rank(each) < own or _running_since(each) <= since]
    return tuple(sorted(first, key=lambda each: (_remaining_s(each), room.order.rank(each))))


def _waiting_since(job: Job) -> str:
    placed = condition(job.status, ConditionType.PLACED)
    is_known = placed is not None and placed.status is ConditionStatus.FALSE
    return placed.last_transition_time if placed is not None and is_known else job.created


def _running_since(job: Job) -> str:
    placed = condition(job.status, ConditionType.PLACED)
    is_known = placed is not None and placed.status is ConditionStatus.TRUE
    return placed.last_transition_time if placed is not None and is_known else "~"  # just now: after any time


def _remaining_s(job: Job) -> float:
    """Guess when a job ends; only the choice among safe ones follows from it."""
    status = job.status
    if status.plan is None or status.plan.step_seconds is None or status.steps is None:
        return float("inf")
    return (status.steps - (status.step or 0)) * float(status.plan.step_seconds)
