"""Room for a whole gang or for none of it: whose turn it is, what is free, which nodes; one sentence if it waits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.plan import Placement, Plan
from pipelinejob.site import Draft
from pipelinejob_operator.admission.asking import ask
from pipelinejob_operator.admission.backfill import kept_for, reserve
from pipelinejob_operator.admission.capacity import Claim, Promise, minus, promise_of
from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.preempting import victims
from pipelinejob_operator.admission.priority import NO_PRIORITY_CLASS
from pipelinejob_operator.admission.queueing import (
    NEVER_FITS,
    NO_PLAN,
    NO_ROOM,
    NOT_ITS_TURN,
    PREEMPTED,
    PREEMPTING,
)
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.controller import transitions
from pipelinejob_operator.controller.measurements import with_plan
from pipelinejob_operator.controller.planning import is_priced
from pipelinejob_operator.controller.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job

# The next in line looks again this soon, the one behind it later: a long line must not keep the operator busy.
QUEUE_STEP_S = 1.0
_NAMED = 3  # jobs that a sentence names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """A job that asks for room, all that it sees, and what is kept for those ahead; None: none may be passed."""

    turn: Turn
    room: Room
    chooser: Chooser
    ahead: Sequence[Job]
    kept: tuple[Claim, ...] | None

    @property
    def job(self) -> Job:
        return self.turn.job


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of a job that asked for room: the turn it takes, and its place if it got one.

    A job that fits is to be priced first, and then to ask again.
    """

    turn: Turn
    placement: Placement | None = None
    lacks_prices: bool = False


def admit(
    turn: Turn, drafted: Callable[[Job], Draft], room: Room, chooser: Chooser, settings: ControllerSettings
) -> Admission:
    """Give the job its nodes, or say why it waits. `turn.job.is_placed` stays; the new status tells."""
    turn = turn.having(not_before=None)
    if not room.order.priorities.knows(turn.job):
        return Admission(turn=_without_class(turn))
    try:
        return _admit_in_turn(turn, drafted(turn.job), room, chooser, settings)
    except SpecError as error:
        return Admission(turn=transitions.fail(turn, "InvalidSpec", str(error), stalled=True))
    except NoPlacementError as error:
        turn = turn.having(preempts=(), waits_for=())
        return Admission(turn=transitions.wait(turn, NO_PLAN, str(error), stalled=True))


def promise_from(turn: Turn, settings: ControllerSettings) -> Promise | None:
    """Give the promise that a turn makes, None if it makes none."""
    promise = promise_of(replace(turn.job, status=turn.status), settings)
    return promise if promise.claims else None


def _without_class(turn: Turn) -> Turn:
    assert turn.job.spec is not None, "only readable jobs ask for room"
    name = turn.job.spec.scheduling.priority_class_name
    message = f"there is no PriorityClass {name}; create it, or name another in spec.scheduling.priorityClassName"
    return transitions.wait(turn.having(preempts=(), waits_for=()), NO_PRIORITY_CLASS, message, stalled=True)


def without_plan(turn: Turn, error: SpecError) -> Turn:
    """Wait on: there were nodes, but what the job would be on them cannot be planned."""
    turn = turn.having(preempts=(), waits_for=())
    return transitions.wait(turn, NO_PLAN, f"there are nodes for it, but no plan for them: {error}")


def _admit_in_turn(turn: Turn, draft: Draft, room: Room, chooser: Chooser, settings: ControllerSettings) -> Admission:
    ahead = room.order.ahead_of(turn.job, room.waiting)
    asking = _Asking(turn=turn, room=room, chooser=chooser, ahead=ahead, kept=kept_for(ahead, room, chooser))
    if asking.kept is not None:
        free = minus(room.free, asking.kept)
        if not is_priced(draft) and chooser.fits(turn.job, free):
            return Admission(turn=turn, lacks_prices=True)
        try:
            prices = draft.prices if is_priced(draft) else None
            placed = chooser.choose(turn.job, free, prices=prices, rate=draft.rate, move_s=settings.move_s)
        except NoPlacementError:
            pass
        else:
            return Admission(turn=_place(turn, draft.plan, placed, ahead), placement=placed)
    if ahead:
        turn = replace(turn, look_again_s=min(settings.waiting_retry_s, QUEUE_STEP_S * len(ahead)))
    return Admission(turn=_wait(replace(asking, turn=turn)))


def _place(turn: Turn, plan: Plan, placed: Placement, ahead: Sequence[Job]) -> Turn:
    nodes = {each.node for each in placed.assignments}
    crossings = [f"{count} cross {level}" for level, count in placed.crossings.items() if count]
    passed = [f"passes {_names(ahead)}, for which other room is kept"] if ahead else []
    parts = [f"{len(placed.assignments)} stages on {_count(len(nodes), 'node')}", ", ".join(crossings), *passed]
    with_nodes = with_plan(turn.status, turn.job, plan.model_copy(update={"placement": placed}))
    return transitions.place(turn, with_nodes, "; ".join(part for part in parts if part))


def _wait(asking: _Asking) -> Turn:
    """Say what is missing, who is ahead, and who makes way."""
    turn, job, room = asking.turn, asking.job, asking.room
    # A job that not even the empty cluster could hold must not keep others waiting, and its author should know.
    try:
        asking.chooser.choose(job, room.empty)
    except NoPlacementError as error:
        turn = turn.having(preempts=(), waits_for=())
        return transitions.wait(turn, NEVER_FITS, f"not even the empty cluster has room: {error}", stalled=True)
    reason, parts = _what_is_missing(asking)
    if asking.kept is not None:
        turn, found = _prepare(asking, asking.kept)
        reason, parts = (PREEMPTING if turn.status.preempts else reason), [*parts, *found]
    if turn.status.preempted_by is not None:
        reason, parts = PREEMPTED, [f"made way for {turn.status.preempted_by}", *parts]
    return transitions.wait(turn, reason, "; ".join(parts))


def _prepare(asking: _Asking, kept: Sequence[Claim]) -> tuple[Turn, list[str]]:
    """See to it that the job will fit: by those that leave, by asking others to, else by what is kept for it."""
    turn, room = asking.turn.having(waits_for=()), asking.room
    gone = victims(asking.job, room, kept, asking.chooser)
    if gone is None:
        reservation = reserve(asking.job, room, kept, asking.chooser)
        waits_for = tuple(str(each.key) for each in reservation.waits_for) if reservation else ()
        turn = turn.having(preempts=(), waits_for=waits_for)
        is_next = waits_for and not asking.ahead
        return turn, [f"room is kept for it until {_join(waits_for)} {_ended(waits_for)}"] if is_next else []
    turn = _ask(turn, room, gone)
    if not turn.status.preempts:
        return turn, ["it fits once the pods that are ending now have ended"]
    names = _join([each.name for each in turn.status.preempts])
    return turn, [f"asked {names}, of lower priority, to write a checkpoint and make way"]


def _what_is_missing(asking: _Asking) -> tuple[str, list[str]]:
    first = asking.ahead[0] if asking.ahead else None
    why_first = asking.room.order.why_ahead(first, asking.job) if first else ""
    try:
        asking.chooser.choose(asking.job, asking.room.free)
    except NoPlacementError as error:
        return NO_ROOM, [str(error), *([f"behind {first.key}, which {why_first}"] if first else [])]
    assert first is not None, "what fits waits only for those ahead"
    return NOT_ITS_TURN, [f"waits behind {first.key}, which {why_first} and waits for room itself"]


def _ask(turn: Turn, room: Room, gone: Sequence[Job]) -> Turn:
    """Ask these to make way, beside those that were asked before and have not left yet."""
    own = room.order.priorities.of(turn.job).value
    for job in gone:
        lower = room.order.priorities.of(job).value
        turn = turn.told("Preempting", f"Asked {job.key} (priority {lower}, below {own}) to make way")
    standing = tuple(each for each in turn.status.preempts if each.uid in room.asked or each.uid in room.leaving)
    return turn.having(preempts=(*standing, *(ask(job) for job in gone)))


def _names(jobs: Sequence[Job]) -> str:
    return _join([str(job.key) for job in jobs])


def _join(names: Sequence[str]) -> str:
    shown = [*names[:_NAMED], *([f"{len(names) - _NAMED} more"] if len(names) > _NAMED else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _ended(names: Sequence[str]) -> str:
    return "has ended" if len(names) == 1 else "have ended"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
