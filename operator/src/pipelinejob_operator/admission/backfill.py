"""Who may go past those ahead: only a job that fits beside what is kept for them.

Nobody knows how long jobs run. So a job that waits has room kept for it that does not depend on
any job that went past it: on what is free, and on what the fewest jobs hold that were there first.
Those are named in its status (`waitsFor`), and as long as it would fit once they are gone, they
stay the same. A job behind it takes only what is free beside. Therefore

- a job that waits starts at the latest when the jobs that it waits for have ended: whoever goes past it, however long
  that runs, is not among them;
- nobody starves but by priority: jobs that were there first are finite in number, and none is ever added but those
  that stand higher in the line.

Where no such room can be reckoned (a longer line than is looked at, or those who hold it went
past), a job keeps what is free on the nodes that it could use, and nothing on others.

(EASY backfilling after Lifka 1995, with the end of named jobs in place of their promised run
times.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType
from pipelinejob_operator.admission.capacity import Claim, Free, minus
from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.fewest import fewest
from pipelinejob_operator.admission.line.queueing import Rank
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.objects.job import Job, condition

_JUST_NOW = "~"  # after any time

_NAMED = 3  # jobs that a sentence names
MAX_RESERVED = 8  # each costs a placement or more; those behind keep all that is free where they could stand


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is kept for a job that waits, and the jobs that have to end before it can start there."""

    claims: tuple[Claim, ...]
    waits_for: tuple[Job, ...] = ()


def name_some(names: Sequence[str], *, of: int) -> str:
    """Name the first few of so many as a sentence does, and how many more there are."""
    shown = list(names[:_NAMED])
    parts = [*shown, *([f"{of - len(shown)} more"] if of > len(shown) else [])]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


class Ahead:
    """Those ahead of the job whose turn it is, and what is kept for them; filled along the line, first first."""

    def __init__(self) -> None:
        self.kept: list[Claim] = []
        self.is_reckoned = True  # room for each of them, so that one behind may count on all other
        self.number = 0
        self._names: list[str] = []
        self._first: Job | None = None
        self._blocked: set[str] = set()  # nodes of which all that is free is kept
        self._likewise: set[frozenset[str]] = set()  # sets of nodes that are all blocked
        self._free: tuple[object, Free] | None = None
        self._reserved: tuple[object, Reservation | None] | None = None  # what was reckoned last, and for what

    @property
    def first(self) -> Job | None:
        """The first of them."""
        return self._first

    @property
    def sentence(self) -> str:
        """Who they are: the first of them by name; empty if there are none."""
        return name_some(self._names, of=self.number) if self._names else ""

    def free(self, room: Room) -> Free:
        """What is free beside what is kept."""
        now = (room.version, len(self.kept))
        if self._free is None or self._free[0] != now:
            self._free = (now, minus(room.free, self.kept))
        return self._free[1]

    def leaves_nothing_to(self, job: Job, room: Room, chooser: Chooser) -> bool:
        """Whether all nodes that the job could use are kept."""
        return bool(self._blocked) and self._is_blocked(chooser.usable(job, room.empty))

    def _is_blocked(self, nodes: frozenset[str]) -> bool:
        if nodes not in self._likewise and nodes <= self._blocked:
            self._likewise.add(nodes)
        return nodes in self._likewise

    def takes_all_of(self, usable: frozenset[str]) -> bool:
        """Whether it is known that nothing is left on these nodes, for this job and any that is like it."""
        return self.number >= MAX_RESERVED and usable in self._likewise

    def count_one_more(self) -> None:
        """Add the next in line, for whom nothing is left to be kept."""
        self.number += 1

    def reserve(self, job: Job, room: Room, chooser: Chooser) -> Reservation | None:
        """Reckon what is kept for a job behind these; once, though both its sentence and those behind ask."""
        now = (job.uid, job.status.waits_for, room.version, len(self.kept))
        if self._reserved is None or self._reserved[0] != now:
            self._reserved = (now, reserve(job, room, self.kept, chooser))
        return self._reserved[1]

    def keep_for(self, job: Job, room: Room, chooser: Chooser) -> None:
        """Add the next in line, and keep room for it."""
        reservation = self.reserve(job, room, chooser) if self.number < MAX_RESERVED else None
        if reservation is None:
            self.keep_all_for(job, room, chooser)
            return
        self._add(job)
        self.kept += reservation.claims

    def keep_all_for(self, job: Job, room: Room, chooser: Chooser) -> None:
        """Add the next in line, and keep all that is free where it could stand: no room was reckoned for it."""
        self._add(job)
        self.is_reckoned = False
        usable = chooser.usable(job, room.empty)
        if not self._is_blocked(usable):
            self.kept += _all_free_on(usable - self._blocked, room, self.kept)
            self._blocked |= usable

    def _add(self, job: Job) -> None:
        self._first = self._first or job
        if self.number < _NAMED:
            self._names.append(str(job.key))
        self.number += 1


def _all_free_on(nodes: Iterable[str], room: Room, kept: Sequence[Claim]) -> list[Claim]:
    free = minus(room.free, kept)
    return [
        Claim(node, {name: amount for name, amount in free[node].items() if amount > 0})
        for node in sorted(nodes)
        if node in free
    ]


def reserve(job: Job, room: Room, kept: Sequence[Claim], chooser: Chooser) -> Reservation | None:
    """Keep room for a job, beside what is kept for those ahead of it; None if only those who went past it have it."""
    first = _there_first(job, room)
    known = tuple(each for each in first if str(each.key) in job.status.waits_for)
    # Nobody has to go any more where room came free before the job asked again.
    for gone in ((), known) if known else ():
        if chooser.fits(job, room.after(gone, kept=kept)) is not None:
            return _kept_where_others_leave(job, gone, room, kept, chooser)
    found = fewest([first], lambda gone: chooser.fits(job, room.after(gone, kept=kept)))
    if found is not None:
        return _kept_where_others_leave(job, found[0], room, kept, chooser)
    # It fits beside none of those ahead, so it waits for their end, too: they are there first,
    # like all that run.
    if (claims := chooser.fits(job, room.after(first))) is not None:
        return Reservation(claims=claims, waits_for=first)
    passed = [each for each in room.running if each not in first]
    others_gone = minus(room.empty, (claim for each in passed for claim in room.held(each.uid)))
    claims = chooser.fits(job, others_gone)  # pods that are no PipelineJob's have to go
    return None if claims is None else Reservation(claims=claims, waits_for=first)


def _kept_where_others_leave(
    job: Job, gone: tuple[Job, ...], room: Room, kept: Sequence[Claim], chooser: Chooser
) -> Reservation | None:
    """Keep, if it suffices, only the nodes that are not free yet: it starts no later for that, and more can go past."""
    after = room.after(gone, kept=kept)
    awaited = {claim.node for each in gone for claim in room.held(each.uid)}
    nothing = {node: dict.fromkeys(amounts, Fraction(0)) for node, amounts in after.items() if node not in awaited}
    claims = chooser.fits(job, {**after, **nothing}) or chooser.fits(job, after)
    return None if claims is None else Reservation(claims=claims, waits_for=gone)


def _there_first(job: Job, room: Room) -> tuple[Job, ...]:
    """Return the running jobs that did not go past this one, those that are expected to end soonest first.

    Kubernetes tells time in whole seconds. Who began to run in the second in which this one began
    to wait counts as there first: such jobs are few, and none is added later.
    """
    own, since = room.order.rank(job), _waiting_since(job)
    by_end = room.derive("running by end", lambda: _by_end(room))
    return tuple(each.job for each in by_end if each.rank < own or each.since <= since)


class _Running(NamedTuple):
    """A job that holds nodes, where it stood in line, and since when it runs."""

    job: Job
    rank: Rank
    since: str


def _by_end(room: Room) -> tuple[_Running, ...]:
    """Return the running jobs, those that are expected to end soonest first."""
    running = [_Running(each, room.order.rank(each), _running_since(each)) for each in room.running]
    return tuple(sorted(running, key=lambda each: (_remaining_s(each.job), each.rank)))


def _waiting_since(job: Job) -> str:
    """Say since when a job waits in line: one that was suspended, or refused, begins to when it comes back."""
    return job.status.waiting_since or _JUST_NOW


def _running_since(job: Job) -> str:
    placed = condition(job.status, ConditionType.PLACED)
    is_known = placed is not None and placed.status is ConditionStatus.TRUE
    return placed.last_transition_time if placed is not None and is_known else _JUST_NOW


def _remaining_s(job: Job) -> float:
    """Guess when a job ends; only the choice among safe ones follows from it."""
    status = job.status
    if status.plan is None or status.plan.step_seconds is None or status.steps is None:
        return float("inf")
    return (status.steps - (status.step or 0)) * float(status.plan.step_seconds)
