"""Why a gang failed, and what follows: the root cause among many endings, and the failure policy's word on it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.running.failure_policy import FailurePolicy, FailureRule, RestartAction
from pipelinejob_operator.objects.containers import Ending, Trouble
from pipelinejob_operator.objects.job import Rank
from pipelinejob_operator.objects.pods import Outcome, StagePod

# Codes of a stage that only followed another's end.
_FOLLOWERS = frozenset({ExitCode.PEER_LOST, ExitCode.STOPPED})

_KILLED = 137


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What ended the gang. A disruption is the cluster's doing and counts against no limit."""

    rank: Rank
    pod: str
    reason: str
    message: str
    exit_code: int | None = None  # the trainer's own; None where something else ended the stage
    is_disruption: bool = False
    is_announced: bool = False  # the stage was asked to leave, so that nothing is wrong with it
    conditions: frozenset[tuple[str, str]] = frozenset()  # of its pod: type and status


class Verdict(Enum):
    """What a failure leads to."""

    FAIL = auto()
    RESTART_COUNTED = auto()
    RESTART_FREE = auto()
    EXHAUSTED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A gang that is not whole any more; `cause` is None while it is too early to say why."""

    cause: Cause | None
    known_in_s: float = 0.0


def find_breakage(
    ranks: Sequence[Rank],
    pods: Mapping[Rank, StagePod],
    lost_nodes: frozenset[str],
    *,
    pod_names: Mapping[Rank, str],
    now: datetime,
    root_cause_wait_s: float,
) -> Broken | None:
    """Look for a rank that is lost; None if the gang is whole.

    The cause is, in this order: a user's error (it explains the rest), a pod or node that was
    taken away, the first container that failed by itself. Stages that only lost a peer wait for
    that peer's own end to be seen.
    """
    failed = [pod for pod in pods.values() if pod.outcome is Outcome.FAILED]
    taken = [cause for rank in ranks if (cause := _taken(rank, pods.get(rank), lost_nodes, pod_names[rank]))]
    if not failed and not taken:
        return None
    own = sorted((pod for pod in failed if _failed_by_itself(pod)), key=_finished)
    users = [pod for pod in own if pod.ending is not None and pod.ending.exit_code == ExitCode.USER_ERROR]
    if users:
        return Broken(cause=_own_cause(users[0]))
    if taken:
        return Broken(cause=taken[0])
    if own:
        return Broken(cause=_own_cause(own[0]))
    absent = [pod for _, pod in sorted(pods.items()) if not pod.has_started and pod.outcome is None]
    return _only_followers(sorted(failed, key=_finished), absent, now=now, wait_s=root_cause_wait_s)


def refused_nodes(pods: Iterable[StagePod]) -> dict[str, str]:
    """Name the nodes that did not let a stage begin, with what they said."""
    return {pod.node: f"{pod.rank}: {pod.refusal}" for pod in pods if pod.node is not None and pod.refusal is not None}


def judge(cause: Cause, policy: FailurePolicy, *, restarts: int) -> Verdict:
    """Apply the failure policy: the first rule that matches, else what the end means; then the limit.

    `restarts` are those that count against it now.
    """
    action = next((rule.action for rule in policy.rules if _matches(rule, cause)), None) or _by_itself(cause)
    if action is RestartAction.FAIL:
        return Verdict.FAIL
    if action is RestartAction.IGNORE:
        return Verdict.RESTART_FREE
    return Verdict.RESTART_COUNTED if restarts < policy.max_restarts else Verdict.EXHAUSTED


def _matches(rule: FailureRule, cause: Cause) -> bool:
    if rule.on_exit_codes is not None:
        return not cause.is_disruption and cause.exit_code in rule.on_exit_codes
    return any((each.type, each.status) in cause.conditions for each in rule.on_pod_conditions or ())


def _by_itself(cause: Cause) -> RestartAction:
    """What an end leads to that no rule speaks of."""
    if cause.is_disruption:
        return RestartAction.IGNORE
    return RestartAction.FAIL if cause.exit_code == ExitCode.USER_ERROR else RestartAction.RESTART


def describe(cause: Cause) -> str:
    """Say in one sentence what ended the gang."""
    code = f" with exit code {cause.exit_code}" if cause.exit_code is not None else ""
    ended = "was taken away" if cause.is_disruption else f"failed{code}"
    return f"{str(cause.rank).capitalize()} (pod {cause.pod}) {ended}: {cause.message or cause.reason}"


def _taken(rank: Rank, pod: StagePod | None, lost_nodes: frozenset[str], name: str) -> Cause | None:
    if pod is None:
        return _disruption(rank, name, "PodDeleted", "the pod is gone; somebody or something deleted it")
    if pod.outcome is Outcome.SUCCEEDED:
        return None
    if (left := _disruption_of(pod)) is not None:
        return _disruption(rank, name, left.reason, left.message, pod)
    if pod.is_terminating and not _failed_by_itself(pod):
        return _disruption(rank, name, "PodDeleted", "the pod is being deleted, not by this operator", pod)
    if pod.node in lost_nodes and pod.outcome is None:
        return _disruption(rank, name, "NodeLost", f"its node {pod.node} is gone or not ready", pod)
    return None


def _disruption_of(pod: StagePod) -> Trouble | None:
    """Say who took a pod away, or that its stage left because it was told to."""
    if pod.disruption is not None:
        return Trouble(pod.disruption.reason, str(pod.disruption))
    if pod.ending is not None and pod.ending.exit_code == ExitCode.LEFT:
        return Trouble(pod.ending.reason, pod.ending.message)
    return None


def _disruption(rank: Rank, name: str, reason: str, message: str, pod: StagePod | None = None) -> Cause:
    return Cause(
        rank=rank,
        pod=name,
        reason=reason,
        message=message,
        is_disruption=True,
        is_announced=pod is not None and reason != "NodeLost",
        conditions=_conditions(pod) if pod else frozenset(),
    )


def _conditions(pod: StagePod) -> frozenset[tuple[str, str]]:
    found = pod.raw.get("status", {}).get("conditions") or ()
    return frozenset((str(each.get("type")), str(each.get("status"))) for each in found)


def _failed_by_itself(pod: StagePod) -> bool:
    if pod.outcome is not Outcome.FAILED or pod.disruption is not None:
        return False
    if pod.is_terminating and pod.ending is not None and pod.ending.exit_code == _KILLED:
        return pod.ending.reason == "OOMKilled"  # else its grace was over
    return pod.ending is None or pod.ending.exit_code not in _FOLLOWERS | {ExitCode.LEFT}


def _own_cause(pod: StagePod) -> Cause:
    ending = pod.ending or Ending(exit_code=None, reason="PodFailed", message="the pod failed without saying why")
    return Cause(
        rank=pod.rank,
        pod=pod.name,
        reason=ending.reason,
        message=ending.message,
        exit_code=ending.exit_code,
        conditions=_conditions(pod),
    )


def _only_followers(failed: Sequence[StagePod], absent: Sequence[StagePod], *, now: datetime, wait_s: float) -> Broken:
    first = failed[0]
    since = first.ending.finished if first.ending else None
    remaining = (since + timedelta(seconds=wait_s) - now).total_seconds() if since else 0.0
    if 0 < remaining <= wait_s:  # more than that is a clock that runs ahead
        return Broken(cause=None, known_in_s=remaining)
    if absent:
        message = f"it had not begun when {first.rank} gave up waiting for its peers"
        return Broken(cause=Cause(rank=absent[0].rank, pod=absent[0].name, reason="NeverStarted", message=message))
    return Broken(cause=_own_cause(first))


def _finished(pod: StagePod) -> tuple[bool, float, Rank]:
    moment = pod.ending.finished if pod.ending else None
    return (moment is None, moment.timestamp() if moment else 0.0, pod.rank)
