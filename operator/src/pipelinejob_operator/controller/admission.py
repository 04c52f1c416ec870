"""Room for a whole gang or for none of it: whose turn it is, what is free, which nodes; one sentence if it waits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.plan import Plan
from pipelinejob.spec import PipelineJobSpec
from pipelinejob_operator.admission.capacity import Promise, free_room, promise_of, standing_room
from pipelinejob_operator.admission.choosing import choose_nodes
from pipelinejob_operator.admission.queueing import NEVER_FITS, NO_ROOM, NOT_ITS_TURN, ahead_of
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.controller import transitions
from pipelinejob_operator.controller.measurements import with_plan
from pipelinejob_operator.controller.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job

# The next in line looks again this soon, the one behind it later: a long line must not keep the operator busy.
QUEUE_STEP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The cluster as an admission sees it. `promises` are those of the other jobs."""

    nodes: Sequence[Object]
    pods: Sequence[Object]
    jobs: Sequence[Job]
    promises: Sequence[Promise]

    def free(self) -> dict[str, dict[str, Fraction]]:
        """Give what is left on every node now."""
        return free_room(self.nodes, self.pods, self.promises)

    def standing(self) -> dict[str, dict[str, Fraction]]:
        """Give what would be left on every node if all work were done."""
        return standing_room(self.nodes, self.pods)


def admit(
    turn: Turn, spec: PipelineJobSpec, planner: Callable[[Job], Plan], room: Room, settings: ControllerSettings
) -> Turn:
    """Give the job its nodes, or say why it waits. `turn.job.is_placed` stays; the new status tells."""
    turn = turn.having(not_before=None)
    try:
        return _admit_in_turn(turn, spec, planner(turn.job), room, settings)
    except SpecError as error:
        return transitions.fail(turn, "InvalidSpec", str(error), stalled=True)


def promise_from(turn: Turn, settings: ControllerSettings) -> Promise | None:
    """Give the promise that a turn makes, None if it makes none."""
    promise = promise_of(replace(turn.job, status=turn.status), settings)
    return promise if promise.claims else None


def _admit_in_turn(turn: Turn, spec: PipelineJobSpec, plan: Plan, room: Room, settings: ControllerSettings) -> Turn:
    job = turn.job
    ahead = ahead_of(job, room.jobs)
    if ahead:
        message = f"waits behind {ahead[0].key}, which is older and waits for room itself"
        turn = replace(turn, look_again_s=min(settings.waiting_retry_s, QUEUE_STEP_S * len(ahead)))
        return _wait(turn, spec, room, settings, reason=NOT_ITS_TURN, message=message)
    try:
        placed = choose_nodes(job, spec, nodes=room.nodes, free=room.free(), settings=settings)
    except NoPlacementError as error:
        return _wait(turn, spec, room, settings, reason=NO_ROOM, message=str(error))
    nodes = {each.node for each in placed.assignments}
    crossings = ", ".join(f"{count} cross {level}" for level, count in placed.crossings.items() if count)
    message = f"{len(placed.assignments)} stages on {_count(len(nodes), 'node')}" + (
        f"; {crossings}" if crossings else ""
    )
    with_nodes = with_plan(turn.status, job, plan.model_copy(update={"placement": placed}))
    return transitions.place(turn, with_nodes, message)


def _wait(
    turn: Turn, spec: PipelineJobSpec, room: Room, settings: ControllerSettings, *, reason: str, message: str
) -> Turn:
    # A job that not even the empty cluster could hold must not keep others waiting, and its author should know.
    try:
        choose_nodes(turn.job, spec, nodes=room.nodes, free=room.standing(), settings=settings)
    except NoPlacementError as error:
        return transitions.wait(turn, NEVER_FITS, f"not even the empty cluster has room: {error}", stalled=True)
    return transitions.wait(turn, reason, message)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
