"""What to do about one job, decided purely: first the status it should have, then what that status asks of the cluster.

The status is written before anything else is done, and what is done follows from it and from what
is seen. So a pass that dies half-way is simply taken up by the next, and `status.attempt` fences
every pod that it does not name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from pipelinejob.contract.incarnation import GivenRank, Incarnation
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Mode, PipelineJobSpec
from pipelinejob.spec.reported.conditions import ConditionType, State
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import (
    Change,
    Event,
    ForbiddenError,
    InvalidError,
    NameTakenError,
    Object,
    Reference,
)
from pipelinejob_operator.controller.actions import follow
from pipelinejob_operator.controller.looking_again import (
    SOON_S,
    backing_off_s,
    is_finished,
    next_looks,
    seconds_to_deadline,
    seconds_to_next_question,
)
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns import moving, remedies, stragglers, transitions
from pipelinejob_operator.controller.turns.failing import crashing, replacing, sparing
from pipelinejob_operator.controller.turns.failing.failures import (
    Broken,
    Cause,
    Verdict,
    describe,
    find_breakage,
    judge,
    refused_nodes,
)
from pipelinejob_operator.controller.turns.failing.giving_back import (
    describe_misfits,
    leave_out,
    say_left_out,
    since_release_s,
    take_back,
    unbinding_nodes,
    why_unbound,
)
from pipelinejob_operator.controller.turns.failing.hanging import find_hang
from pipelinejob_operator.controller.turns.failing.starting import (
    Hindrance,
    describe_hindrance,
    find_hindrance,
    is_worth_telling,
    overdue_cause,
    refusing_node,
)
from pipelinejob_operator.controller.turns.measurements import with_last_words, with_pods, with_progress
from pipelinejob_operator.controller.turns.not_finite import tell_not_finite
from pipelinejob_operator.controller.turns.saving import tell_of_failed_checkpoints
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.controller.turns.waiting import late, provisioning, quota
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.containers import Ending
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, condition, parse_time
from pipelinejob_operator.objects.ownership import NAMES_TAKEN
from pipelinejob_operator.objects.pods import Outcome, StagePod

Refusal = ForbiddenError | InvalidError | NameTakenError  # of one of a gang's objects, by the cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one pass does, in this order: the status, deletions, applications, changes of pods, what stages are told."""

    status: PipelineJobStatus
    events: tuple[Event, ...] = ()
    delete: tuple[Reference, ...] = ()
    apply: tuple[Object, ...] = ()
    change: tuple[Change, ...] = ()
    patch: tuple[Change, ...] = ()  # fields of the status of Kueue's Workload
    asks_for_room: bool = False
    meets: Incarnation | None = None  # of which the gang's stages are to be told
    given: tuple[tuple[Object, GivenRank], ...] = ()  # spares that are to be told whose place they take
    label: tuple[Change, ...] = ()  # of such, for people and selectors: nothing is decided by them
    requeue_after_s: float | None = None


def decide(
    observed: Observed, now: datetime, settings: ControllerSettings, *, planner: Callable[[Job], Plan]
) -> Decision:
    """Decide what to do about the job."""
    job = observed.job
    if job.is_deleting:  # what it owns goes with it, by its owner references
        return Decision(status=job.status)
    turn = Turn(job=job, now=now, status=job.status)
    if not job.is_finished:
        turn = _advance(turn, observed, settings, planner)
        turn = sparing.let_go(turn) if is_finished(turn) else turn
    return complete(turn, observed, settings, planner=planner)


def complete(
    turn: Turn, observed: Observed, settings: ControllerSettings, *, planner: Callable[[Job], Plan]
) -> Decision:
    """Say what the status asks of the cluster, and when to look again."""
    actions = follow(turn, observed, settings, planner=planner)
    dues, asked = quota.dues(turn, observed), provisioning.dues(turn, observed, settings)
    return Decision(
        status=turn.status,
        events=turn.events,
        delete=(*actions.delete, *dues.delete, *asked.delete),
        apply=(*dues.apply, *asked.apply, *actions.apply),
        change=actions.change,
        patch=dues.patch,
        asks_for_room=_asks_for_room(turn, observed),
        meets=moving.told_plan(turn, observed, planner),
        given=sparing.given(turn.status, observed),
        label=sparing.labelled(turn.status, observed),
        requeue_after_s=min(next_looks(turn, observed, settings), default=None),
    )


def refused(
    observed: Observed,
    now: datetime,
    settings: ControllerSettings,
    *,
    error: Refusal,
    planner: Callable[[Job], Plan],
) -> Decision:
    """Decide what follows when the cluster refused one of the gang's objects."""
    turn = Turn(job=observed.job, now=now, status=observed.job.status)
    job = observed.job
    joining = moving.under_way(turn.status)
    if not job.is_finished and joining is not None and not joining.decided:
        turn = moving.give_up(turn, f"the cluster refused an object of the new replicas: {error}")
    elif not job.is_finished and sparing.are_made_now(turn.status, observed):
        turn = sparing.refused(turn, observed, error)
    elif not job.is_finished and job.has_begun:
        if isinstance(error, InvalidError) and (job.status.released_time is None or not job.is_placed):
            turn = transitions.fail(
                turn, "InvalidTemplate", f"the cluster finds an object of the gang invalid: {error}; mend spec.template"
            )
        else:
            reason = NAMES_TAKEN if isinstance(error, NameTakenError) else "Refused"
            message = f"the cluster refused a part of the gang, so none of it runs: {error}"
            turn = take_back(turn, reason, message, settings)
    elif not job.is_finished and observed.quota is not None:
        message = f"the cluster refused the Workload that asks Kueue for quota: {error}"
        turn = transitions.wait(turn, quota.REFUSED, message)
    elif not job.is_finished and provisioning.needs_nodes(turn):
        turn = provisioning.refused(turn, error)
    return complete(turn, observed, settings, planner=planner)


def _advance(turn: Turn, observed: Observed, settings: ControllerSettings, planner: Callable[[Job], Plan]) -> Turn:
    spec = observed.job.spec
    if observed.errors or spec is None:
        return _refuse(turn, observed)
    if seconds_to_deadline(turn, spec, default=1.0) <= 0:
        limit = spec.active_deadline_seconds
        return transitions.fail(
            turn, "DeadlineExceeded", f"the job was active for {limit} s, spec.activeDeadlineSeconds; allow it more"
        )
    if spec.suspend:
        turn = turn.having(**_reported(with_last_words(turn.status, _endings(observed))))
        return transitions.suspend(turn, is_still_running=any(not pod.is_done for pod in observed.pods))
    if _is_suspended(turn):
        turn = transitions.resume(turn)
    held = quota.hold(turn, observed)
    return _proceed(turn, observed, spec, settings, planner) if held is None else held


def _proceed(
    turn: Turn,
    observed: Observed,
    spec: PipelineJobSpec,
    settings: ControllerSettings,
    planner: Callable[[Job], Plan],
) -> Turn:
    if observed.job.binds_late and observed.job.has_begun and not observed.job.is_placed:
        return late.watch_binding(turn, observed, settings)
    if not observed.job.is_placed:
        return _make_way(turn, observed, settings)
    if observed.job.status.released_time is None:
        return _gather(turn, observed, settings)
    return _run(turn, observed, spec, settings, planner)


def _refuse(turn: Turn, observed: Observed) -> Turn:
    message = "\n".join(str(error) for error in observed.errors) or "the spec can't be read by this version"
    if not observed.job.has_begun:
        return transitions.fail(turn, "InvalidSpec", message, stalled=True)
    # An operator of another version may have started it: say so, and leave what runs alone.
    stalled = Fact(True, "InvalidSpec", message)
    return turn.finding(turn.status.state or State.PENDING, {ConditionType.STALLED: stalled})


def _make_way(turn: Turn, observed: Observed, settings: ControllerSettings) -> Turn:
    """Before a new attempt asks for room, nothing of an older one may be left."""
    state = turn.status.state if turn.status.state is State.RESTARTING else State.PENDING
    if observed.in_the_way:
        return transitions.step_aside(turn, state, observed.in_the_way)
    stuck = [
        pod for pod in observed.older if pod.node in observed.silent_nodes and _outlived_grace(pod, turn.now, settings)
    ]
    if stuck:
        message = (
            f"pod {stuck[0].name} can't be confirmed dead, its node {stuck[0].node} is lost; "
            f"delete the node, or taint it node.kubernetes.io/out-of-service"
        )
        turn = transitions.clean_up(turn, state, "PodsStuck", message)
        return turn.finding(state, {ConditionType.STALLED: Fact(True, "PodsStuck", message)})
    if turn.status.preempted_by is not None:
        return turn.having(**_reported(with_last_words(turn.status, _endings(observed))))
    return turn


def _endings(observed: Observed) -> list[Ending]:
    return [pod.ending for pod in observed.of_gang.pods if pod.ending]


def _gather(turn: Turn, observed: Observed, settings: ControllerSettings) -> Turn:
    """Let the gang go once it is whole: gated until then, it holds nothing."""
    if observed.asker is not None:
        return transitions.make_way(turn, observed.asker)
    if not observed.is_gathered:
        return turn
    if observed.misfits:
        return take_back(turn, "NoLongerFits", describe_misfits(observed.misfits), settings)
    return transitions.release(turn)


def _run(  # noqa: PLR0911 # a list of what may have happened
    turn: Turn,
    everything: Observed,
    spec: PipelineJobSpec,
    settings: ControllerSettings,
    planner: Callable[[Job], Plan],
) -> Turn:
    observed = everything.of_gang
    current = observed.current
    done = _done_ranks(turn.status, current)
    turn = turn.having(**_reported(with_pods(turn.status, current)))
    # Of a batch the first stage knows when it is done; the others would wait for more.
    is_answered = spec.mode is Mode.BATCH and Rank(0, 0) in done
    if len(done) == len(observed.job.ranks) or is_answered or moving.has_ended(turn.status, observed.job.ranks, done):
        return transitions.succeed(turn)
    seen = replacing.expected([rank for rank in observed.job.ranks if rank not in done], current, turn.status)
    broken = find_breakage(
        seen.ranks,
        seen.pods,
        observed.lost_nodes,
        pod_names={Rank(stage.replica, stage.stage): stage.pod for stage in turn.status.stages},
        now=turn.now,
        root_cause_wait_s=settings.root_cause_wait_s,
    )
    if broken is None and replacing.is_on(spec):
        late = replacing.overdue(turn, spec)
        silent = late or replacing.find_silent(observed, seen.pods, turn.status)
        broken = None if silent is None else Broken(cause=silent)
    if broken is None and replacing.recovery_of(turn.status).since is None:
        hang = find_hang(observed.accounts or observed.progress, seen.pods, attempt=turn.status.attempt)
        broken = None if hang is None else Broken(cause=hang)
    if broken is None:
        turn, is_all = moving.advance(turn, everything, planner)
        if is_all:
            return turn
        turn = turn.having(stages=crashing.with_well_stages(turn.status, current, turn.now).stages)
        stage = crashing.find_crashing(turn.status, current)
        if stage is not None and observed.asker is None:
            return replace(crashing.tell(turn, stage, spec.failure_policy), look_again_s=settings.progress_interval_s)
        watched = _watch(turn, observed, spec, done, settings)
        return sparing.keep(watched, everything, spec, settings)
    if broken.cause is None:
        turn = replace(turn, look_again_s=SOON_S)
        return transitions.start(turn, "a stage lost its peer; waiting to see which one ended first")
    turn = moving.give_up(turn, "a stage was lost meanwhile")
    replaced = replacing.replace_lost(turn, broken.cause, observed, seen, spec)
    if isinstance(replaced, Turn):
        replaced = leave_out(replaced, refused_nodes(current.values()), settings)
        return replace(replaced, look_again_s=replaced.look_again_s or replacing.LOOK_S)
    cause = broken.cause
    if replaced:
        message = f"{cause.message or cause.reason} (the whole gang restarts: {replaced})"
        cause = replace(cause, message=message, is_disruption=cause.is_disruption or replacing.was_stopped(seen))
    return _fail_or_restart(turn, cause, spec, settings, refused=refused_nodes(current.values()))


def _fail_or_restart(
    turn: Turn, cause: Cause, spec: PipelineJobSpec, settings: ControllerSettings, *, refused: Mapping[str, str]
) -> Turn:
    """End the job or the attempt; `refused` are the nodes, with their words, that the next is to leave out."""
    policy = spec.failure_policy
    restarts = transitions.restarts_that_count(turn, policy)
    verdict = judge(cause, policy, restarts=restarts)
    if verdict is Verdict.FAIL:
        return transitions.fail(turn.told("StageFailed", describe(cause), warning=True), cause.reason, describe(cause))
    if verdict is Verdict.EXHAUSTED:
        within = f" within {policy.restart_window_seconds} s" if policy.restart_window_seconds else ""
        message = (
            f"{describe(cause)}; no restart is left of spec.failurePolicy.maxRestarts: {policy.max_restarts}{within}"
        )
        return transitions.fail(turn.told("StageFailed", describe(cause), warning=True), "RestartsExhausted", message)
    is_counted = verdict is Verdict.RESTART_COUNTED
    in_a_row = 0 if _ran_for_long(turn, settings) else turn.status.disruptions_in_a_row
    if not is_counted and in_a_row >= settings.max_disruptions_in_a_row:
        message = (
            f"{describe(cause)}; the gang was taken away {in_a_row + 1} times in a row, never after more than "
            f"{2 * settings.max_restart_backoff_s:.0f} s; find out who does it, and submit the job again: its "
            f"checkpoints are kept"
        )
        return transitions.fail(turn.told("StageFailed", describe(cause), warning=True), "DisruptedTooOften", message)
    turn = turn.having(disruptions_in_a_row=in_a_row + (not is_counted))
    backoff_s = _backoff_s(turn, restarts if is_counted else in_a_row, settings)
    if refused:
        turn = leave_out(turn, refused, settings)
        cause = replace(cause, message=f"{cause.message or cause.reason}{say_left_out(turn)}")
    return transitions.restart(turn, cause, is_counted=is_counted, backoff_s=backoff_s, policy=policy)


def _watch(  # noqa: PLR0911 # a list of what may be the matter
    turn: Turn, observed: Observed, spec: PipelineJobSpec, done: frozenset[Rank], settings: ControllerSettings
) -> Turn:
    """Look after a whole gang: bound in time, startable, ready, and how far it is."""
    if observed.asker is not None:
        return transitions.make_way(turn, observed.asker)
    current, num_ranks = observed.current, len(observed.job.ranks)
    recovers = replacing.recovery_of(turn.status).since is not None
    unbound = [pod for pod in current.values() if pod.node is None]
    if unbound and not recovers and since_release_s(turn.status, turn.now) >= settings.gang_timeout_s:
        turn = leave_out(turn, unbinding_nodes(turn, unbound), settings)
        message = why_unbound(unbound, num_ranks, settings) + say_left_out(turn)
        return take_back(turn, "GangTimeout", message, settings)
    hindrance = find_hindrance(turn, observed, spec.failure_policy, settings)
    hindered = None if hindrance is None else _hindered(turn, hindrance, observed, spec, settings)
    if hindered is not None:
        return hindered
    measured = with_progress(turn.status, observed.progress, now=turn.now)
    slow, pace = stragglers.look(observed.progress, before=turn.status, measured=measured)
    before, turn = turn.status, turn.having(**_reported(measured))
    turn = tell_of_failed_checkpoints(tell_not_finite(turn, before), before, observed.progress)
    num_up = sum(rank in done or _is_up(current.get(rank)) for rank in observed.job.ranks)
    if replacing.is_on(spec) and not done:
        turn = replacing.reunite(turn, observed, spec, is_whole=num_up == num_ranks)
        if recovers or turn.meets is not None:
            return turn
    if num_up == num_ranks:
        acted = remedies.act(turn, pace, slow, observed, spec)
        if isinstance(acted, Turn):
            return acted
        turn = remedies.with_start(turn, spec)
        return transitions.train(turn, num_stages=num_ranks, pace=acted, beside=_beside(current))
    if turn.look_again_s is None:
        turn = replace(turn, look_again_s=seconds_to_next_question(turn, current, hindrance, settings))
    why = f"; {describe_hindrance(hindrance)}" if hindrance and is_worth_telling(turn, settings) else ""
    return transitions.start(turn, f"{num_up} of {num_ranks} stages are up{why}")


def _hindered(
    turn: Turn, hindrance: Hindrance, observed: Observed, spec: PipelineJobSpec, settings: ControllerSettings
) -> Turn | None:
    """Say what follows from what keeps a stage; None if it may still come up by itself."""
    recovers = replacing.recovery_of(turn.status).since is not None
    if recovers and hindrance.is_worth_another_node(turn.now):
        moved = replacing.try_elsewhere(turn, overdue_cause(hindrance, turn.now), observed, spec)
        if moved is not None:
            return replace(leave_out(moved, refusing_node(hindrance), settings), look_again_s=replacing.LOOK_S)
    if hindrance.is_overdue(turn.now):
        cause = overdue_cause(hindrance, turn.now)
        return _fail_or_restart(turn, cause, spec, settings, refused=refusing_node(hindrance))
    if not hindrance.is_told:
        return None
    words = describe_hindrance(hindrance)
    turn = replace(turn, look_again_s=seconds_to_next_question(turn, observed.current, hindrance, settings))
    return transitions.stick(turn, hindrance.reason, words[0].upper() + words[1:])


def _is_up(pod: StagePod | None) -> bool:
    return pod is not None and pod.is_ready and not pod.is_terminating


def _beside(current: Mapping[Rank, StagePod]) -> str:
    failed = [(pod.name, pod.beside.message) for _, pod in sorted(current.items()) if pod.beside and not pod.outcome]
    more = f", and so in {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"beside the trainer of pod {failed[0][0]}, {failed[0][1]}{more}" if failed else ""


def _done_ranks(status: PipelineJobStatus, current: dict[Rank, StagePod]) -> frozenset[Rank]:
    # A pod that completed may be swept away before its peers complete; its exit code stays in the
    # status.
    swept = {
        rank
        for stage in status.stages
        if stage.exit_code == 0 and (rank := Rank(stage.replica, stage.stage)) not in current
    }
    return frozenset(swept | {rank for rank, pod in current.items() if pod.outcome is Outcome.SUCCEEDED})


def _reported(status: PipelineJobStatus) -> dict[str, object]:
    fields = ("stages", "stages_ready", "step", "progress", "loss", "tokens_per_second", "bubble")
    more = ("last_checkpoint_step", "progress_time", "skipped_steps", "roll_backs", "failed_checkpoints")
    return {name: getattr(status, name) for name in (*fields, *more)}


def _asks_for_room(turn: Turn, observed: Observed) -> bool:
    job = observed.job
    if job.is_deleting or job.spec is None or job.spec.suspend or is_finished(turn):
        return False
    if job.binds_late and job.has_begun:
        return late.is_bound(turn, observed)
    is_first_pass_of_attempt = turn.status.attempt == job.status.attempt
    is_free = observed.may_be_placed and not observed.in_the_way and not observed.pods
    return is_first_pass_of_attempt and is_free and not job.is_placed and backing_off_s(turn) <= 0


def _backoff_s(turn: Turn, past: int, settings: ControllerSettings) -> float:
    # The first restart, and one after a long good run, comes at once.
    if past == 0 or _ran_for_long(turn, settings):
        return 0.0
    return min(settings.max_restart_backoff_s, settings.restart_backoff_s * 2.0 ** min(past - 1, 20))


def _ran_for_long(turn: Turn, settings: ControllerSettings) -> bool:
    return since_release_s(turn.status, turn.now) > 2 * settings.max_restart_backoff_s


def _is_suspended(turn: Turn) -> bool:
    last = condition(turn.status, ConditionType.SUSPENDED)
    return last is not None and last.reason in {"Suspended", "Suspending"}


def _outlived_grace(pod: StagePod, now: datetime, settings: ControllerSettings) -> bool:
    deleted = pod.raw["metadata"].get("deletionTimestamp")  # the API server's: request plus grace
    return deleted is not None and (now - parse_time(deleted)).total_seconds() > settings.node_loss_toleration_s
