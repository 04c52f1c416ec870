"""What admission decided, taken up into a job's status."""

from datetime import datetime

from pipelinejob.base.errors import SpecError
from pipelinejob.contract.plan import Placement, Plan
from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType, State
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.admission.line.queueing import NO_PLAN
from pipelinejob_operator.admission.line.verdict import Placed, Refused, Waits
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.measurements import with_plan
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.job import Job, condition, parse_time


def follow_placed(turn: Turn, plan: Plan, verdict: Placed) -> Turn:
    """Take the place that was found; `turn.job.is_placed` stays, the new status tells."""
    placement = verdict.placement
    with_nodes = with_plan(turn.status, turn.job, plan.model_copy(update={"placement": placement}))
    return transitions.place(turn.having(not_before=None), with_nodes, _describe(placement, verdict.passed))


def follow_waits(turn: Turn, verdict: Waits) -> Turn:
    """Wait, and say why."""
    turn = turn.having(not_before=None, preempts=verdict.preempts, waits_for=verdict.waits_for)
    for event in verdict.events:
        turn = turn.told(event.reason, event.message)
    return transitions.wait(turn, verdict.reason, verdict.message, stalled=verdict.is_stalled)


def may_wait_untold(status: PipelineJobStatus, verdict: Waits, *, now: datetime, patience_s: float) -> bool:
    """Say whether why a job waits may stay unsaid: it gave up its place a moment ago, and mostly gets one at once.

    Where many gangs restart together this halves what is written; the status says meanwhile why
    the job restarts.
    """
    placed = condition(status, ConditionType.PLACED)
    if status.state is not State.RESTARTING or placed is None:
        return False
    if (status.preempts, status.waits_for) != (verdict.preempts, verdict.waits_for):
        return False  # others act on these
    return (now - parse_time(placed.last_transition_time)).total_seconds() < patience_s


def follow_refused(turn: Turn, verdict: Refused) -> Turn:
    """End: nothing can be planned for such a spec."""
    return transitions.fail(turn.having(not_before=None), "InvalidSpec", verdict.message, stalled=True)


def without_plan(turn: Turn, error: SpecError) -> Turn:
    """Wait on: there were nodes, but what the job would be on them cannot be planned."""
    turn = turn.having(preempts=(), waits_for=(), not_before=None)
    return transitions.wait(turn, NO_PLAN, f"there are nodes for it, but no plan for them: {error}")


def is_told(job: Job, verdict: Waits) -> bool:
    """Tell whether a job's status says already why it waits."""
    placed = condition(job.status, ConditionType.PLACED)
    return (
        placed is not None
        and placed.status is ConditionStatus.FALSE
        and (placed.reason, placed.message) == (verdict.reason, verdict.message)
        and (job.status.preempts, job.status.waits_for) == (verdict.preempts, verdict.waits_for)
    )


def _describe(placed: Placement, passed: str) -> str:
    nodes = {each.node for each in placed.assignments}
    crossings = [f"{count} cross {level}" for level, count in placed.crossings.items() if count]
    others = [f"passes {passed}, for which other room is kept"] if passed else []
    parts = [f"{len(placed.assignments)} stages on {_count(len(nodes), 'node')}", ", ".join(crossings), *others]
    return "; ".join(part for part in parts if part)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
