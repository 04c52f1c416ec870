"""The turns a job's life takes, each as a new status: waiting, placed, released, training, given up, ended.

Every turn sets all conditions that it touches and says so in an event. `decide.py` decides when to
take which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Self

from pipelinejob.base import names
from pipelinejob.contract.incarnation import Incarnation
from pipelinejob.search.found import title
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.reported.conditions import ConditionType, State
from pipelinejob.spec.running.failure_policy import FailurePolicy
from pipelinejob.spec.serving import Mode
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.admission.line.queueing import BLOCKS_NOBODY, PREEMPTED
from pipelinejob_operator.cluster import Event
from pipelinejob_operator.controller.turns.failing.budget import within
from pipelinejob_operator.controller.turns.failing.failures import Cause, describe
from pipelinejob_operator.controller.turns.measurements import progress_share, without_nodes
from pipelinejob_operator.objects.conditions import Fact, with_facts
from pipelinejob_operator.objects.job import Job, condition, format_time
from pipelinejob_operator.objects.ownership import NAMES_TAKEN, Obstacle
from pipelinejob_operator.objects.ownership import describe as describe_obstacles

ADMITTED, PLACED, READY = ConditionType.ADMITTED, ConditionType.PLACED, ConditionType.READY
SUCCEEDED, SUSPENDED = ConditionType.SUCCEEDED, ConditionType.SUSPENDED
DEGRADED, STALLED, RESIZED = ConditionType.DEGRADED, ConditionType.STALLED, ConditionType.RESIZED

AS_WANTED = Fact(True, "AsWanted", "the job has the replicas that its spec asks for")
NOT_BOUND = "NotBound"  # by the cluster's scheduler, which is asked

_WELL: dict[ConditionType, Fact] = {
    DEGRADED: Fact(False, "AsExpected"),
    STALLED: Fact(False, "AsExpected"),
}
_ACTIVE: dict[ConditionType, Fact] = {
    SUCCEEDED: Fact(None, "Active", "the job has not ended yet"),
    SUSPENDED: Fact(False, "NotSuspended"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A status on its way to being written, and what happened on the way."""

    job: Job
    now: datetime
    status: PipelineJobStatus
    events: tuple[Event, ...] = ()
    look_again_s: float | None = None  # sooner than usual
    meets: Incarnation | None = None  # of which its members are to be told

    def told(self, reason: str, message: str, *, warning: bool = False) -> Self:
        """Add an event."""
        event = Event(type="Warning" if warning else "Normal", reason=reason, message=message)
        return replace(self, events=(*self.events, event))

    def having(self, **changes: Any) -> Self:
        """Change fields of the status."""
        return replace(self, status=self.status.model_copy(update=changes))

    def finding(self, state: State, facts: Mapping[ConditionType, Fact]) -> Self:
        """Set the state and its conditions."""
        status = with_facts(self.status, facts, generation=self.job.generation, now=self.now)
        return replace(self, status=status.model_copy(update={"state": state}))


def wait(turn: Turn, reason: str, message: str, *, stalled: bool = False) -> Turn:
    """Wait for room, holding nothing; `stalled` if only a person can change that."""
    since = None if reason in BLOCKS_NOBODY else turn.status.waiting_since or format_time(turn.now)
    turn = turn.having(waiting_since=since)
    last = condition(turn.status, PLACED)
    is_news = last is None or last.reason != reason
    facts = _ACTIVE | _WELL | {
        ADMITTED: Fact(False, reason, message),
        PLACED: Fact(False, reason, message),
        READY: Fact(False, "Waiting"),
    }  # fmt: skip
    if stalled:
        facts |= {STALLED: Fact(True, reason, message)}
    turn = turn.finding(State.WAITING, facts)
    return turn.told("Waiting", message, warning=stalled) if is_news else turn


def clean_up(turn: Turn, state: State, reason: str, message: str) -> Turn:
    """Wait for pods of an older attempt, or a namesake's, to be gone; keep why the last attempt ended readable."""
    return turn.finding(state, {READY: Fact(False, reason, message), PLACED: Fact(False, reason, message)})


def step_aside(turn: Turn, state: State, obstacles: Sequence[Obstacle]) -> Turn:
    """Wait for names that others have: for moments until what is leaving is gone, else until somebody acts."""
    message = describe_obstacles(obstacles)
    if all(each.is_leaving for each in obstacles):
        return clean_up(turn, state, NAMES_TAKEN, message)
    return wait(turn, NAMES_TAKEN, message, stalled=True)


def choose(turn: Turn, chosen: Chosen) -> Turn:
    """Store what was chosen for what the spec leaves open, before anything is done by it."""
    return turn.having(chosen=chosen).told("Chosen", f"Chose {title(chosen)}")


def place(turn: Turn, status: PipelineJobStatus, message: str) -> Turn:
    """Hold room for every rank; `status` already names the nodes."""
    turn = replace(turn, status=status).having(
        attempt=max(1, status.attempt),
        not_before=None,
        released_time=None,
        start_time=status.start_time or format_time(turn.now),
        preempts=(),
        waits_for=(),
        waiting_since=None,
        preempted_by=None,
        **_scale(turn.job),
    )
    return turn.finding(
        State.STARTING,
        _ACTIVE
        | _WELL
        | resized_facts(turn)
        | {
            ADMITTED: Fact(True, "Admitted", "there is room for the whole gang"),
            PLACED: Fact(True, "Placed", message),
            READY: Fact(False, "Starting", "the stages' pods are being made"),
        },
    ).told("Placed", f"Attempt {turn.status.attempt}: {message}")


def let_bind(turn: Turn, status: PipelineJobStatus) -> Turn:
    """Let the pods go wherever the cluster's scheduler puts them; `status` already names them."""
    message = "the cluster's scheduler is asked for nodes"
    turn = replace(turn, status=status).having(
        attempt=max(1, status.attempt),
        not_before=None,
        released_time=format_time(turn.now),
        start_time=status.start_time or format_time(turn.now),
        preempted_by=None,
        **_scale(turn.job),
    )
    return await_binding(turn.finding(State.STARTING, _ACTIVE | _WELL | resized_facts(turn)), message).told(
        "Released", f"Attempt {turn.status.attempt}: {message}"
    )


def await_binding(turn: Turn, message: str) -> Turn:
    """Say how many pods have a node."""
    facts = {kind: Fact(False, NOT_BOUND, message) for kind in (ADMITTED, PLACED)}
    return turn.finding(State.STARTING, facts | {READY: Fact(False, "Starting", message)})


def number(turn: Turn, status: PipelineJobStatus, message: str) -> Turn:
    """Say which pod is which rank, for as long as the attempt lasts; `status` already does."""
    facts = {
        ADMITTED: Fact(True, "Admitted", "the whole gang is bound"),
        PLACED: Fact(True, "Placed", message),
        READY: Fact(False, "Starting", "the stages are told their numbers"),
    }
    return replace(turn, status=status).finding(State.STARTING, facts).told("Placed", message)


def release(turn: Turn) -> Turn:
    """Let the whole gang go to its nodes."""
    # In the words of `start`: they cost no status of their own.
    message = f"0 of {len(turn.job.ranks)} stages are up"
    return turn.having(released_time=format_time(turn.now)).finding(
        State.STARTING, {READY: Fact(False, "Starting", message)}
    )


def train(turn: Turn, *, num_stages: int, pace: Fact, beside: str = "") -> Turn:
    """Say that every stage is up, whether one of them holds up the others, and what failed beside a trainer."""
    last = condition(turn.status, DEGRADED)
    if pace.holds and (last is None or last.reason != pace.reason):
        turn = turn.told(pace.reason, pace.message, warning=True)
    was_ready = condition(turn.status, READY)
    is_news = was_ready is None or was_ready.reason != "StagesReady"
    message = f"all {num_stages} stages are up" + (f"; {beside}" if beside else "")
    facts = _WELL | {READY: Fact(True, "StagesReady", message), DEGRADED: pace}
    spec = turn.job.spec
    trains = spec is None or spec.mode is Mode.TRAIN
    turn = turn.finding(State.DEGRADED if pace.holds else State.TRAINING if trains else State.SERVING, facts)
    doing = "training" if trains else "answering"
    return turn.told("StagesReady", f"All {num_stages} stages are up and {doing}") if is_news else turn


def start(turn: Turn, message: str) -> Turn:
    """Say that some stages are not up yet, or not any more."""
    return turn.finding(State.STARTING, _WELL | {READY: Fact(False, "Starting", message)})


def stick(turn: Turn, reason: str, message: str) -> Turn:
    """Say that a stage can't start until somebody mends something."""
    last = condition(turn.status, DEGRADED)
    is_news = last is None or last.reason != reason
    if last is not None and not is_news:
        message = last.message  # the kubelet words the same trouble differently each time
    facts = {
        DEGRADED: Fact(True, reason, message),
        STALLED: Fact(True, reason, message),
        READY: Fact(False, reason, message),
    }
    turn = turn.finding(State.STARTING, facts)
    return turn.told("StageStuck", message, warning=True) if is_news else turn


def give_up(  # all of it is said of one attempt
    turn: Turn,
    *,
    state: State,
    reason: str,
    message: str,
    backoff_s: float,
    rank: Any = None,
    comes_back: bool = False,
) -> Turn:
    """End the present attempt; the next one fences it off. Its pods go before anything of the next comes."""
    status = without_nodes(turn.status, failed=rank, comes_back=comes_back)
    until = format_time(turn.now + timedelta(seconds=backoff_s)) if backoff_s > 0 else None
    return (
        replace(turn, status=status)
        .having(
            attempt=status.attempt + 1,
            skipped_steps=None,
            roll_backs=None,
            failed_checkpoints=None,
            released_time=None,
            not_before=until,
            recovery=status.recovery and status.recovery.of_next_attempt(),
        )
        .finding(
            state,
            _WELL
            | {
                ADMITTED: Fact(False, reason, message),
                PLACED: Fact(False, reason, message),
                READY: Fact(False, reason, message),
            },
        )
    )


def restarts_that_count(turn: Turn, policy: FailurePolicy) -> int:
    """Count the restarts that count against the limit now: all, or those within the policy's window."""
    if policy.restart_window_seconds is None:
        return turn.status.restarts
    return len(within(turn.status.restart_times or (), policy.restart_window_seconds, turn.now))


def restart(turn: Turn, cause: Cause, *, is_counted: bool, backoff_s: float, policy: FailurePolicy) -> Turn:
    """Restart the gang from its last checkpoint."""
    restarts, disruptions = turn.status.restarts + is_counted, turn.status.disruptions + (not is_counted)
    sentence, window_s = describe(cause), policy.restart_window_seconds
    counted = "which counts against no limit"
    if is_counted:
        window = f" within {window_s} s" if window_s else ""
        number = restarts_that_count(turn, policy) + 1
        counted = f"restart {number} of at most {policy.max_restarts}{window}"
    elif cause.is_disruption:
        counted = "a disruption, which counts against no limit"
    times = None
    if window_s:
        earlier = within(turn.status.restart_times or (), window_s, turn.now)
        times = (*earlier, *([format_time(turn.now)] if is_counted else []))
    turn = turn.told("StageFailed", sentence, warning=True)
    turn = give_up(
        turn,
        state=State.RESTARTING,
        reason="Restarting",
        message=f"{sentence}; the gang goes on from its last checkpoint ({counted})",
        backoff_s=backoff_s,
        rank=cause.rank if is_counted else None,
        comes_back=True,
    ).having(restarts=restarts, disruptions=disruptions, restart_times=times)
    pause = f" after {backoff_s:.0f} s" if backoff_s > 0 else ""
    return turn.told("Restarting", f"Attempt {turn.status.attempt} begins{pause}: {counted}")


def make_way(turn: Turn, asker: Job) -> Turn:
    """Release everything for a job of higher priority, as for a suspension, and wait for the next turn.

    It counts as no restart, and the active deadline counts anew, as after a suspension.
    """
    message = f"makes way for {asker.key}, which has a higher priority; the stages write a checkpoint and stop"
    turn = give_up(turn, state=State.WAITING, reason=PREEMPTED, message=message, backoff_s=0.0).having(
        start_time=None, preemptions=turn.status.preemptions + 1, preempted_by=str(asker.key)
    )
    return turn.told(PREEMPTED, f"M{message[1:]}, and go on from it when there is room again", warning=True)


def suspend(turn: Turn, *, is_still_running: bool) -> Turn:
    """Take everything back, because the spec says so; trainers checkpoint when they are told to stop."""
    turn = turn.having(preempts=(), waits_for=(), waiting_since=None)
    if not is_still_running:
        message = "spec.suspend is true; set it to false to go on from the last checkpoint"
        facts = {SUSPENDED: Fact(True, "Suspended", message)} | _taken_back("Suspended", message) | _WELL
        last = condition(turn.status, SUSPENDED)
        # As for a batch Job, the active deadline counts anew after a suspension.
        recovery = turn.status.recovery and turn.status.recovery.model_copy(update={"speeds": None})
        changes = {"start_time": None, "not_before": None, "chosen": None, "recovery": recovery}
        turn = turn.having(**changes).finding(State.SUSPENDED, facts)
        is_news = last is None or last.reason != "Suspended"
        return turn.told("Suspended", "Everything is released") if is_news else turn
    message = "spec.suspend is true; the stages write a checkpoint and stop"
    if turn.job.has_begun:
        turn = give_up(turn, state=State.SUSPENDING, reason="Suspending", message=message, backoff_s=0.0)
    return turn.finding(
        State.SUSPENDING, {SUSPENDED: Fact(False, "Suspending", message)} | _taken_back("Suspending", message)
    )


def resume(turn: Turn) -> Turn:
    """Go on after a suspension, at the end of the line; not a restart."""
    facts = _ACTIVE | {PLACED: Fact(False, "Resumed"), ADMITTED: Fact(False, "Resumed"), READY: Fact(False, "Resumed")}
    return (
        turn.having(not_before=None, resumed_time=format_time(turn.now))
        .finding(State.PENDING, facts)
        .told("Resumed", "spec.suspend is false; the job goes on from its last checkpoint")
    )


def succeed(turn: Turn) -> Turn:
    """End well."""
    steps = turn.status.steps
    turn = turn.having(
        completion_time=format_time(turn.now),
        step=steps or turn.status.step,
        last_checkpoint_step=steps or turn.status.last_checkpoint_step,  # the last step always ends with one
        progress=progress_share(1, 1),
    )
    message = f"all stages completed {steps} steps" if steps else "all requests are answered"
    facts = {
        SUCCEEDED: Fact(True, "Completed", message),
        READY: Fact(False, "Completed", message),
        ADMITTED: Fact(False, "Completed", "the job has ended and holds nothing"),
    }
    return turn.finding(State.SUCCEEDED, _WELL | facts).told("Succeeded", message[0].upper() + message[1:])


def fail(turn: Turn, reason: str, message: str, *, stalled: bool = False) -> Turn:
    """End badly, for ever: a finished job is never run again."""
    facts = {
        SUCCEEDED: Fact(False, reason, message),
        READY: Fact(False, reason, message),
        ADMITTED: Fact(False, reason, "the job has ended and holds nothing"),
        STALLED: Fact(stalled, reason if stalled else "Ended", message if stalled else ""),
        DEGRADED: Fact(False, "Ended"),
    }
    return (
        turn.having(
            completion_time=format_time(turn.now), not_before=None, preempts=(), waits_for=(), waiting_since=None
        )
        .finding(State.FAILED, facts)
        .told("Failed", f"{reason}: {message}", warning=True)
    )


def _taken_back(reason: str, message: str) -> dict[ConditionType, Fact]:
    return {kind: Fact(False, reason, message) for kind in (ADMITTED, PLACED, READY)}


def _scale(job: Job) -> dict[str, Any]:
    """What the scale subresource shows of a job that is given its place."""
    assert job.spec is not None, "only readable jobs are placed"
    return {"replicas": job.spec.parallelism.data, "selector": f"{names.LABEL_JOB}={job.key.name}"}


def resized_facts(turn: Turn) -> dict[ConditionType, Fact]:
    """Whether a job that is given its place has the replicas it wants; nothing of one that was never asked."""
    job, last = turn.job, condition(turn.status, RESIZED)
    if job.is_resized and job.status.chosen is not None:
        message = f"runs with {job.status.chosen.data} of the {job.wanted_replicas} replicas, and grows as room comes"
        return {RESIZED: Fact(False, "Fewer", message)}
    return {} if last is None else {RESIZED: AS_WANTED}
