"""Room for one whole gang or for none of it, once it is its turn: which nodes, or in one sentence why it waits."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.contract.plan import Placement
from pipelinejob.placement.fastest_devices import Rate
from pipelinejob.placement.prices import Prices
from pipelinejob_operator.admission.backfill import Ahead, name_some
from pipelinejob_operator.admission.capacity import Free
from pipelinejob_operator.admission.choosing import Beside, Chooser
from pipelinejob_operator.admission.line.asking import ask
from pipelinejob_operator.admission.line.priority import NO_PRIORITY_CLASS
from pipelinejob_operator.admission.line.queueing import NEVER_FITS, NO_VOLUME, PREEMPTED, PREEMPTING
from pipelinejob_operator.admission.line.telling import Told, tell
from pipelinejob_operator.admission.line.verdict import Waits
from pipelinejob_operator.admission.preempting import victims
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import Event
from pipelinejob_operator.objects.job import Job


@dataclass(slots=True)
class Memory:
    """What was found for jobs of one shape, for as long as the room, or the empty cluster, stays as it is."""

    version: object = None
    empty_version: object = None
    missing: dict[Hashable, str | None] = field(default_factory=dict)  # None: it would fit
    hopeless: dict[Hashable, str | None] = field(default_factory=dict)
    too_little: set[Hashable] = field(default_factory=set)  # shapes that did not fit beside what is kept

    def at(self, room: Room) -> None:
        """Forget what no longer holds."""
        if self.version != room.version:
            self.version, self.missing = room.version, {}
        if self.empty_version != (room.empty_version, room.node_version, room.pod_version):
            self.empty_version = (room.empty_version, room.node_version, room.pod_version)
            self.hopeless = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A job whose turn it is, all that it sees, and what is kept for those ahead."""

    job: Job
    room: Room
    chooser: Chooser
    ahead: Ahead
    memory: Memory

    @property
    def free(self) -> Free:
        """What is free beside what is kept for those ahead."""
        return self.ahead.free(self.room)

    @property
    def shape(self) -> Hashable:
        """What it has in common with jobs for which the same is found."""
        return self.chooser.shape(self.job)


def hindrance(job: Job, room: Room, chooser: Chooser) -> Waits | None:
    """Say what keeps a job from any place, whatever is free: a class or a volume that nobody has made."""
    assert job.spec is not None, "only readable jobs ask for room"
    if not room.order.priorities.knows(job):
        name = job.spec.scheduling.priority_class_name
        message = f"there is no PriorityClass {name}; create it, or name another in spec.scheduling.priorityClassName"
        return Waits(reason=NO_PRIORITY_CLASS, message=message, is_stalled=True)
    if missing := chooser.missing_claims(job):
        message = f"there is no PersistentVolumeClaim {missing[0]} in namespace {job.key.namespace}; create it"
        return Waits(reason=NO_VOLUME, message=message, is_stalled=True)
    return None


def may_fit(asking: Asking) -> bool:
    """Tell whether it is worth a look: not if all is kept, or if one like it did not fit a moment ago."""
    if asking.ahead.leaves_nothing_to(asking.job, asking.room, asking.chooser):
        return False
    return asking.shape not in asking.memory.too_little


def fits(asking: Asking, *, free: Free) -> bool:
    """Tell whether the job fits where so much is free beside what is kept, whatever its steps would cost there."""
    if asking.chooser.fits(asking.job, free) is None:
        asking.memory.too_little.add(asking.shape)
        return False
    return True


def choose(asking: Asking, *, free: Free, prices: Prices | None, rate: Rate, move_s: float) -> Placement | None:
    """Choose nodes where so much is free, beside what is kept for those ahead; None if there are none."""
    try:
        return asking.chooser.choose(asking.job, free, prices=prices, rate=rate, move_s=move_s)
    except NoPlacementError:
        asking.memory.too_little.add(asking.shape)
        return None


def explain(asking: Asking) -> Waits:
    """Say what is missing, who is ahead, and who makes way."""
    # A job that not even the empty cluster could hold must not keep others waiting, and its author
    # should know.
    hopeless = _remembered(asking.memory.hopeless, asking, lambda: _why_never(asking))
    if hopeless is not None:
        message = f"not even the empty cluster has room: {hopeless}"
        return Waits(reason=NEVER_FITS, message=message, is_stalled=True)
    reason, parts = _what_is_missing(asking)
    prepared = Waits(reason=reason, message="")
    if asking.ahead.is_reckoned:
        prepared, found = _prepare(asking)
        reason, parts = (PREEMPTING if prepared.preempts else reason), [*parts, *found]
    made_way_for = asking.job.status.preempted_by
    if made_way_for is not None:
        reason, parts = PREEMPTED, [f"made way for {made_way_for}", *parts]
    return Waits(
        reason=reason,
        message="; ".join(parts),
        preempts=prepared.preempts,
        waits_for=prepared.waits_for,
        events=prepared.events,
    )


def _why_never(asking: Asking) -> str | None:
    try:
        asking.chooser.choose(asking.job, asking.room.empty, beside=Beside.STANDING)
    except NoPlacementError as error:
        return str(error)
    return None


def _why_not_now(asking: Asking) -> str | None:
    try:
        asking.chooser.choose(asking.job, asking.room.free)
    except NoPlacementError as error:
        return str(error)
    return None


def _remembered(known: dict[Hashable, Any], asking: Asking, find: Callable[[], str | None]) -> str | None:
    shape = asking.shape
    if shape not in known:
        known[shape] = find()
    found: str | None = known[shape]
    return found


def _what_is_missing(asking: Asking) -> Told:
    return tell(
        asking.job,
        first=asking.ahead.first,
        ahead=asking.ahead.number,
        order=asking.room.order,
        find_missing=lambda: _remembered(asking.memory.missing, asking, lambda: _why_not_now(asking)),
    )


def _prepare(asking: Asking) -> tuple[Waits, list[str]]:
    """See to it that the job will fit: by those that leave, by asking others to, else by what is kept for it."""
    room, kept = asking.room, asking.ahead.kept
    gone = victims(asking.job, room, kept, asking.chooser)
    if gone is None:
        reservation = asking.ahead.reserve(asking.job, room, asking.chooser)
        waits_for = tuple(str(each.key) for each in reservation.waits_for) if reservation else ()
        is_next = waits_for and asking.ahead.first is None
        named = name_some(waits_for, of=len(waits_for)) if waits_for else ""
        sentence = f"room is kept for it until {named} {_ended(waits_for)}" if is_next else ""
        return Waits(reason="", message="", waits_for=waits_for), [sentence] if sentence else []
    return _ask(asking.job, room, gone)


def _ask(job: Job, room: Room, gone: Sequence[Job]) -> tuple[Waits, list[str]]:
    """Ask these to make way, beside those that were asked before and have not left yet."""
    priorities = room.order.priorities
    events = tuple(
        Event(
            type="Normal",
            reason="Preempting",
            message=f"Asked {each.key} (priority {priorities.of(each).value}, below {priorities.of(job).value}) "
            "to make way",
        )
        for each in gone
    )
    standing = tuple(each for each in job.status.preempts if each.uid in room.asked or each.uid in room.leaving)
    preempts = (*standing, *(ask(each) for each in gone))
    if not preempts:
        return Waits(reason="", message=""), ["it fits once the pods that are ending now have ended"]
    asked = name_some([each.name for each in preempts], of=len(preempts))
    sentence = f"asked {asked}, of lower priority, to write a checkpoint and make way"
    return Waits(reason="", message="", preempts=preempts, events=events), [sentence]


def _ended(names: Sequence[str]) -> str:
    return "has ended" if len(names) == 1 else "have ended"
