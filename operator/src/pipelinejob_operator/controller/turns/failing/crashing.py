"""A stage that serves and ends again and again: it begins again in its place, so that no end of the gang tells of it.

Its container's restarts are counted from when it was last well: up for a minute, or up after it
was killed by somebody else. What it said last is told at each of them, and the failure policy
judges it as it judges restarts of gangs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.reported.conditions import ConditionType, State
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.running.failure_policy import FailurePolicy
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.controller.turns.failing.failures import Cause, Verdict, describe, judge
from pipelinejob_operator.controller.turns.transitions import Turn, fail
from pipelinejob_operator.objects import containers
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.containers import Ending
from pipelinejob_operator.objects.job import Rank, condition
from pipelinejob_operator.objects.pods import StagePod

CRASHES = "StageCrashes"
_WELL_S = 60.0
_KILLED = 137
_FOLLOWERS = frozenset({ExitCode.PEER_LOST, ExitCode.STOPPED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashing:
    """A stage, how often in a row it has ended without being well in between, and how the last time."""

    pod: StagePod
    times: int
    ending: Ending


def with_well_stages(status: PipelineJobStatus, current: Mapping[Rank, StagePod], now: datetime) -> PipelineJobStatus:
    """Write of each stage that is well how often it had been started again; crashes are counted from there."""
    stages = tuple(_noted(stage, current.get(Rank(stage.replica, stage.stage)), now) for stage in status.stages)
    return status if stages == status.stages else status.model_copy(update={"stages": stages})


def find_crashing(status: PipelineJobStatus, current: Mapping[Rank, StagePod]) -> Crashing | None:
    """Look for the stage that has ended most often in a row; None if none has, or each only followed another."""
    found = []
    for stage in status.stages:
        pod = current.get(Rank(stage.replica, stage.stage))
        crash = containers.crash(pod.raw) if pod is not None else None
        if pod is None or crash is None or crash.ending is None or crash.ending.exit_code in _FOLLOWERS:
            continue
        times = crash.restarts - _counted_before(stage, crash.restarts)
        if times > 0 and not (pod.is_ready and _was_killed(crash.ending)):
            found.append(Crashing(pod=pod, times=times, ending=crash.ending))
    return max(found, key=lambda each: each.times, default=None)


def tell(turn: Turn, crashing: Crashing, policy: FailurePolicy) -> Turn:
    """Say what a stage said when it ended last, and what follows; end the job where the policy says so."""
    cause = Cause(
        rank=crashing.pod.rank,
        pod=crashing.pod.name,
        reason=crashing.ending.reason,
        message=crashing.ending.message,
        exit_code=crashing.ending.exit_code,
    )
    verdict = judge(cause, policy, restarts=crashing.times - 1)
    if verdict is Verdict.FAIL:
        return fail(turn.told("StageFailed", describe(cause), warning=True), cause.reason, describe(cause))
    if verdict is Verdict.EXHAUSTED:
        message = (
            f"{describe(cause)}; it ended {crashing.times} times in a row, and no restart is left of "
            f"spec.failurePolicy.maxRestarts: {policy.max_restarts}"
        )
        return fail(turn.told("StageFailed", describe(cause), warning=True), "RestartsExhausted", message)
    counted = f"restart {crashing.times} of at most {policy.max_restarts} in a row"
    if verdict is Verdict.RESTART_FREE:
        counted = f"restart {crashing.times} in a row, which counts against no limit"
    message = f"{describe(cause)}; it begins again in its place ({counted})"
    last = condition(turn.status, ConditionType.DEGRADED)
    is_news = last is None or last.message != message
    facts = {
        ConditionType.DEGRADED: Fact(True, CRASHES, message),
        ConditionType.READY: Fact(False, CRASHES, message),
        ConditionType.STALLED: Fact(False, "AsExpected"),
    }
    turn = turn.finding(State.STARTING, facts)
    return turn.told(CRASHES, message, warning=True) if is_news else turn


def _noted(stage: StageStatus, pod: StagePod | None, now: datetime) -> StageStatus:
    crash = containers.crash(pod.raw) if pod is not None else None
    if pod is None or crash is None or not pod.is_ready:
        return stage
    is_well = crash.ending is None or _was_killed(crash.ending)
    if not is_well and (crash.since is None or (now - crash.since).total_seconds() < _WELL_S):
        return stage
    return stage.model_copy(update={"restarts_when_well": crash.restarts or None})


def _counted_before(stage: StageStatus, restarts: int) -> int:
    before = stage.restarts_when_well or 0
    return before if before <= restarts else 0  # else it is another pod, whose count began anew


def _was_killed(ending: Ending) -> bool:
    if ending.exit_code in _FOLLOWERS:
        return True
    return ending.exit_code == _KILLED and ending.reason != "OOMKilled"
