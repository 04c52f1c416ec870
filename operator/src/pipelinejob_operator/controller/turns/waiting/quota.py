"""The turns that Kueue makes a job take: it waits for quota, and gives everything back when that is taken away."""

from dataclasses import dataclass, replace

from pipelinejob.spec.reported.conditions import ConditionType, State
from pipelinejob_operator.admission.line.quota import QUOTA_TAKEN_BACK, Quota, finished, handed_over, readiness
from pipelinejob_operator.cluster import Change, Object, Reference
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.measurements import with_last_words
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.job import condition
from pipelinejob_operator.objects.peers.workload import holds

REFUSED = "Refused"  # by admission: Kueue's webhook, or a policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Dues:
    """What Kueue is to be asked or told now."""

    delete: tuple[Reference, ...] = ()
    apply: tuple[Object, ...] = ()
    patch: tuple[Change, ...] = ()  # fields of its Workload's status


def hold(turn: Turn, observed: Observed) -> Turn | None:
    """Wait for quota, or give everything back that was taken away; None if nothing of Kueue's keeps the job."""
    quota = observed.quota
    if quota is None:
        return None
    if observed.job.has_begun:
        # Without Kueue nobody reckons any more; what runs is left alone.
        return None if quota.kueue is None or quota.is_admitted else _take_back(turn, quota)
    if observed.may_be_placed:
        return None
    if observed.pods or observed.in_the_way:
        return None if quota.kueue is None else _stopping(turn, observed)
    reason, message = quota.why_pending()
    last = condition(turn.status, ConditionType.PLACED)
    if quota.workload is None and quota.wanted is not None and last is not None and last.reason == REFUSED:
        reason, message = last.reason, last.message  # until it is let in, that is why
    return transitions.wait(turn, reason, message, stalled=quota.problem is not None)


def dues(turn: Turn, observed: Observed) -> Dues:
    """Return what the status asks of Kueue."""
    if observed.stray_workload is not None:
        return Dues(delete=(_reference(observed.stray_workload),))
    quota = observed.quota
    if quota is None or quota.kueue is None or observed.job.is_deleting:
        return Dues()
    if turn.status.state in {State.SUCCEEDED, State.FAILED}:
        return _after_the_end(turn, observed, quota)
    if observed.pods or replace(observed.job, status=turn.status).has_begun:
        return Dues(patch=_readiness(turn, quota))
    return _before_the_start(turn, quota)


def _take_back(turn: Turn, quota: Quota) -> Turn:
    words = quota.why_taken_back()
    message = (
        f"Kueue took the quota back: {words}; the stages write a checkpoint and stop, and go on from it when queue "
    )
    message += f"{quota.queue} admits the job again"
    turn = turn.told(QUOTA_TAKEN_BACK, message, warning=True)
    turn = transitions.give_up(turn, state=State.WAITING, reason=QUOTA_TAKEN_BACK, message=message, backoff_s=0.0)
    return turn.having(start_time=None)  # as after a suspension, the active deadline counts anew


def _stopping(turn: Turn, observed: Observed) -> Turn | None:
    """Keep the last words of stages that stop; None as long as there is none, and none is in the way."""
    status = with_last_words(turn.status, [pod.ending for pod in observed.pods if pod.ending])
    return None if status == turn.status else replace(turn, status=status)


def _after_the_end(turn: Turn, observed: Observed, quota: Quota) -> Dues:
    found = quota.workload
    if found is None or holds(found, "Finished") or any(not pod.is_done for pod in observed.pods):
        return Dues()
    last = condition(turn.status, ConditionType.SUCCEEDED)
    message = last.message if last else ""
    is_success = turn.status.state is State.SUCCEEDED
    return Dues(patch=((found, finished(found, turn.now, is_success=is_success, message=message)),))


def _readiness(turn: Turn, quota: Quota) -> tuple[Change, ...]:
    ready = condition(turn.status, ConditionType.READY)
    is_ready = ready is not None and ready.reason == "StagesReady"
    found = quota.workload
    told = readiness(found, turn.now, is_ready=is_ready) if found and quota.is_admitted else None
    return ((found, told),) if found and told else ()


def _before_the_start(turn: Turn, quota: Quota) -> Dues:
    found = quota.workload
    if turn.status.state is State.SUSPENDED:
        return Dues(delete=(_reference(found),)) if found else Dues()
    if found is None:
        is_leaving = quota.kueue is not None and quota.kueue.workload is not None
        return Dues(apply=(quota.wanted,)) if quota.wanted and not is_leaving else Dues()
    if quota.is_stale or holds(found, "Finished"):
        return Dues(delete=(_reference(found),))
    if holds(found, "Evicted") and holds(found, "QuotaReserved"):
        return Dues(patch=((found, handed_over(found, turn.now)),))
    return Dues(patch=_readiness(turn, quota))


def _reference(item: Object) -> Reference:
    metadata = item["metadata"]
    return Reference(kind=item["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
