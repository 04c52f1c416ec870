"""Recovery in place: a lost rank's pod alone is replaced, and the gang meets anew. Whom to replace, when to tell whom.

The ranks say in `/progress` that they wait to be told who meets, and whom they lost. The number of
a meeting is stored in the status before anybody is told of it, and no number is told twice: a pass
that dies in between gives a new one, and a rank that hears of a newer number takes part in no
older. Stages that serve need not be told: their chain is whole again once all are up.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import timedelta

from pipelinejob.contract.incarnation import Incarnation, Member
from pipelinejob.contract.progress import ExitCode, Progress
from pipelinejob.spec.job import Mode, PipelineJobSpec
from pipelinejob.spec.reported.conditions import ConditionType, State
from pipelinejob.spec.reported.recovery_status import LostRank, RecoveryStatus
from pipelinejob.spec.running.recovery import NoRoom
from pipelinejob.spec.running.scheduling import Binding
from pipelinejob.spec.status import PipelineJobStatus, decimal
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns.failing.budget import within
from pipelinejob_operator.controller.turns.failing.failures import Cause, Verdict, describe, judge
from pipelinejob_operator.controller.turns.failing.next_places import moves, node_of, placed_anew, unused
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.job import Rank, format_time, parse_time
from pipelinejob_operator.objects.making.tokens import derived
from pipelinejob_operator.objects.pods import Outcome, StagePod

_ALL_STOP = frozenset({ExitCode.PEER_LOST, ExitCode.STOPPED})  # of a stage whose peers stop as well
NOT_REPLACED = "NotReplaced"
LOOK_S = 0.25  # while a gang comes together: its stages are asked, no event tells
WATCH_S = 1.0  # while it trains: a stage that is silent is told of by the others only


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The ranks and pods that a failure is looked for among: not those that are known to be lost."""

    ranks: tuple[Rank, ...]
    pods: Mapping[Rank, StagePod]


def recovery_of(status: PipelineJobStatus) -> RecoveryStatus:
    """Return what the status says of recovery in place."""
    return status.recovery or RecoveryStatus()


def is_on(spec: PipelineJobSpec) -> bool:
    """Tell whether lost stages are replaced in place.

    Not those of a batch: two first stages, of which one is on a node that is silent, would write
    the same file.
    """
    serves = spec.mode is Mode.SERVE and spec.scheduling.binding is not Binding.LATE
    return spec.recovery.in_place or serves


def expected(ranks: Sequence[Rank], current: Mapping[Rank, StagePod], status: PipelineJobStatus) -> Expected:
    """Leave out pods that are being replaced, and ranks whose next pod is not there yet: that of a spare is."""
    replacing = _replacing(status)
    coming = {rank for rank in replacing if _spare_of(rank, status) is None}
    pods = {rank: pod for rank, pod in current.items() if not _is_old(pod, replacing.get(rank))}
    return Expected(ranks=tuple(rank for rank in ranks if rank in pods or rank not in coming), pods=pods)


def old_pods(pods: Sequence[StagePod], status: PipelineJobStatus) -> tuple[StagePod, ...]:
    """Return the pods that are to go."""
    uids = {lost.uid for lost in _replacing(status).values()}
    return tuple(pod for pod in pods if pod.reference.uid in uids)


def asked_to_leave(status: PipelineJobStatus) -> frozenset[Rank]:
    """Return the ranks that are replaced though they work, so that they have their grace to hand over."""
    return frozenset(rank for rank, each in _replacing(status).items() if each.gently)


def missing_ranks(pods: Sequence[StagePod], status: PipelineJobStatus) -> tuple[Rank, ...]:
    """Return the ranks whose pod is gone and is to be made anew; a spare that took the place is there."""
    present, replacing = {pod.name for pod in pods}, _replacing(status)
    missing = (each for each in status.stages if each.spare is None and each.pod not in present)
    return tuple(sorted(rank for each in missing if (rank := Rank(each.replica, each.stage)) in replacing))


def was_stopped(seen: Expected) -> bool:
    """Tell whether all that ended were told to, so that none has failed; the pod that was told first may be gone."""
    return {pod.ending and pod.ending.exit_code for pod in _failed(seen)} == {ExitCode.STOPPED}


def find_silent(observed: Observed, current: Mapping[Rank, StagePod], status: PipelineJobStatus) -> Cause | None:
    """Look for a rank that others have lost and that does not answer, though its pod seems to run.

    A replacement that does not answer either, on a node that has fallen silent, is lost with that
    node.
    """
    answers = {Rank(each.replica, each.stage): each for each in observed.accounts}
    told = {Rank(lost.replica, lost.stage): lost for each in observed.accounts for lost in each.lost}
    for rank in sorted(_replacing(status)):
        pod = current.get(rank)
        if pod is not None and rank not in answers and node_of(rank, status) in observed.silent_nodes:
            message = f"its node {node_of(rank, status)} is gone or not ready"
            return Cause(rank=rank, pod=pod.name, reason="NodeLost", message=message, is_disruption=True)
    for rank, lost in sorted(told.items()):
        pod = current.get(rank)
        if pod is None or rank in answers or rank in _replacing(status) or pod.outcome is not None:
            continue
        left = lost.handed_over is not None
        reason = "HandedOver" if left else "Silent"
        return Cause(rank=rank, pod=pod.name, reason=reason, message=lost.why, is_disruption=True, is_announced=left)
    return None


def replace_lost(
    turn: Turn,
    cause: Cause,
    observed: Observed,
    seen: Expected,
    spec: PipelineJobSpec,
    *,
    avoided: AbstractSet[str] = frozenset(),
) -> Turn | str:
    """Replace what is lost, in place; or say why the whole gang has to restart. '' if recovery in place is off.

    `avoided` are nodes that are taken only where there are no others.
    """
    if not is_on(spec):
        return ""
    recovery = recovery_of(turn.status)
    lost = _lost(cause, seen)
    failure = f"{cause.rank.replica}/{cause.rank.stage} at {_step(observed, turn.status)}"
    why_not = _why_not(turn, cause, observed, seen, spec, lost=lost, failure=failure)
    if why_not:
        return why_not
    places = observed.places([*lost], avoided)
    if len(places) < len(lost):
        homeless = ", ".join(_name(rank, turn.status) for rank in lost if rank not in places)
        return _await_room(turn, cause, spec, f"no node has room for {homeless} now")
    where = moves(places, turn)
    now = format_time(turn.now)
    entries = (LostRank(replica=rank.replica, stage=rank.stage, uid=uid) for rank, uid in lost.items())
    kept = tuple(each for each in recovery.replacing if Rank(each.replica, each.stage) not in lost)
    recovery = recovery.model_copy(
        update={
            "replacing": (*kept, *entries),
            "since": recovery.since or now,
            "replacements": recovery.replacements + len(lost),
            "spares": unused(recovery.spares, places),
            "spares_used": recovery.spares_used + sum(place.spare is not None for place in places.values()),
            "replacement_times": (
                *within(recovery.replacement_times, spec.recovery.replacement_window_seconds, turn.now),
                *(now for _ in lost if not cause.is_announced),
            ),
            "last_failure": recovery.last_failure if cause.is_disruption else failure,
        }
    )
    pods = ", ".join(_name(rank, turn.status) for rank in lost)
    num_kept = len(observed.job.ranks) - len(lost)
    others = "1 stage keeps its process" if num_kept == 1 else f"{num_kept} stages keep their processes"
    message = f"{describe(cause)}; only {pods} is replaced{where}, and the others wait with what they hold in memory"
    turn = turn.having(recovery=recovery, stages=placed_anew(turn, places))
    turn = turn.finding(State.STARTING, {ConditionType.READY: Fact(False, "Replacing", message)})
    return turn.told("StageFailed", describe(cause), warning=True).told(
        "Replacing",
        f"Only {pods} is replaced{where}; {others}",
    )


def _await_room(turn: Turn, cause: Cause, spec: PipelineJobSpec, message: str) -> Turn | str:
    """Let the others wait for room if the job is to; return why the gang restarts, if not, or if that took too long."""
    limit = spec.recovery
    if limit.no_room is not NoRoom.WAIT:
        return message
    recovery = recovery_of(turn.status)
    since = parse_time(recovery.since) if recovery.since else turn.now
    if (turn.now - since).total_seconds() >= limit.wait_seconds:
        return f"{message}, nor had any within {limit.wait_seconds} s, spec.recovery.waitSeconds"
    if recovery.since is None:
        turn = turn.told("StageFailed", describe(cause), warning=True)
        turn = turn.told("AwaitsRoom", f"{message}: the others wait with what they hold in memory", warning=True)
    until = format_time(since + timedelta(seconds=limit.wait_seconds))
    words = (
        f"{describe(cause)}; {message}; the others wait with what they hold in memory until {until}, then all restart"
    )
    turn = turn.having(recovery=recovery.model_copy(update={"since": recovery.since or format_time(turn.now)}))
    turn = turn.finding(State.STARTING, {ConditionType.READY: Fact(False, "AwaitsRoom", words)})
    return replace(turn, look_again_s=WATCH_S)


def try_elsewhere(turn: Turn, cause: Cause, observed: Observed, spec: PipelineJobSpec) -> Turn | None:
    """Give a replacement that cannot start another node; None where it is none, or nothing else takes it."""
    if not _replacing(turn.status).get(cause.rank):
        return None
    node = node_of(cause.rank, turn.status)
    place = observed.places([cause.rank], frozenset({node or ""})).get(cause.rank)
    if place is None or place.node == node:
        return None
    seen = expected(observed.job.ranks, observed.current, turn.status)
    # Nothing ran: it is no failure of the stage at its step.
    unstarted = replace(cause, is_disruption=True)
    moved = replace_lost(turn, unstarted, observed, seen, spec, avoided=frozenset({node or ""}))
    return moved if isinstance(moved, Turn) else None


def reunite(turn: Turn, observed: Observed, spec: PipelineJobSpec, *, is_whole: bool) -> Turn:
    """Bring the gang together again; `is_whole`: all its stages are up."""
    return _meet(turn, observed) if spec.recovery.in_place else _rejoin(turn, is_whole=is_whole)


def _meet(turn: Turn, observed: Observed) -> Turn:
    """Tell all who meets, once all wait for that."""
    accounts = _of_attempt(observed, turn.status)
    recovery, pods = recovery_of(turn.status), expected((), observed.current, turn.status).pods
    stay = {rank for rank, pod in pods.items() if not pod.is_terminating}
    if not observed.job.ranks or not all(rank in stay and _waits(accounts.get(rank)) for rank in observed.job.ranks):
        is_quiet = recovery.since is None and not any(_waits(each) for each in accounts.values())
        return replace(turn, look_again_s=WATCH_S if is_quiet and recovery.incarnation else LOOK_S)
    left = _left(accounts.values())
    number = max(recovery.incarnation, *(each.incarnation for each in accounts.values())) + 1
    incarnation = Incarnation(
        number=number,
        attempt=turn.status.attempt,
        members=tuple(member(rank, observed.current[rank], accounts[rank]) for rank in observed.job.ranks),
        key=derived(observed.secret, "meeting"),
    )
    waited_s = None
    if recovery.since is not None:
        waited_s = (turn.now - parse_time(recovery.since)).total_seconds()
        message = f"The gang meets again, as incarnation {number}, {waited_s:.0f} s after the loss"
        turn = turn.told("Recovered", message + _describe_handover(left))
    recovery = _recovered(recovery, waited_s).model_copy(
        update={"incarnation": number, "handed_over": recovery.handed_over + len(left)}
    )
    return replace(turn.having(recovery=recovery), meets=incarnation, look_again_s=LOOK_S)


def _rejoin(turn: Turn, *, is_whole: bool) -> Turn:
    """Note that a chain that serves is whole again, if it was not."""
    recovery = recovery_of(turn.status)
    if recovery.since is None:
        return turn
    if not is_whole:
        return replace(turn, look_again_s=WATCH_S)
    waited_s = (turn.now - parse_time(recovery.since)).total_seconds()
    turn = turn.told("Recovered", f"All stages are there again, {waited_s:.0f} s after the loss")
    return replace(turn.having(recovery=_recovered(recovery, waited_s)), look_again_s=LOOK_S)


def _recovered(recovery: RecoveryStatus, waited_s: float | None) -> RecoveryStatus:
    """Return what is left of a replacement that has come; `waited_s` is None where nobody waited for one."""
    last = recovery.last_seconds if waited_s is None else decimal(waited_s)
    return recovery.model_copy(update={"replacing": (), "since": None, "last_seconds": last})


def overdue(turn: Turn, spec: PipelineJobSpec) -> Cause | None:
    """Return the cause of the gang's end if a replacement has not come in time."""
    recovery = recovery_of(turn.status)
    if recovery.since is None or not recovery.replacing:
        return None
    # A first stage that serves may end its answers before it goes, and its next pod comes only
    # then.
    ends_answers = spec.serving is not None and any(each.stage == 0 for each in recovery.replacing)
    limit_s = spec.recovery.wait_seconds + (spec.serving.timeout_seconds if spec.serving and ends_answers else 0)
    if (turn.now - parse_time(recovery.since)).total_seconds() < limit_s:
        return None
    rank = Rank(recovery.replacing[0].replica, recovery.replacing[0].stage)
    message = f"its replacement did not come within {spec.recovery.wait_seconds} s, spec.recovery.waitSeconds"
    return Cause(rank=rank, pod=_name(rank, turn.status), reason=NOT_REPLACED, message=message)


def _why_not(
    turn: Turn,
    cause: Cause,
    observed: Observed,
    seen: Expected,
    spec: PipelineJobSpec,
    *,
    lost: Mapping[Rank, str],
    failure: str,
) -> str:
    recovery, limit = recovery_of(turn.status), spec.recovery
    codes = {pod.ending.exit_code for pod in _failed(seen) if pod.ending}
    times = within(recovery.replacement_times, limit.replacement_window_seconds, turn.now)
    trains = spec.mode is Mode.TRAIN
    reasons = {
        "its failure is final": judge(cause, spec.failure_policy, restarts=0) is Verdict.FAIL,
        "its replacement is late": cause.reason == NOT_REPLACED,
        "the gang had not met yet": trains and not recovery.incarnation,
        "a stage has completed already": any(pod.outcome is Outcome.SUCCEEDED for pod in seen.pods.values()),
        "its peers stop as well": trains and bool(codes & _ALL_STOP),
        "no stage is left that could go on": len(lost) >= len(observed.job.ranks),
        "it failed at this step before, so another try in place would end the same": (
            trains and not cause.is_disruption and recovery.last_failure == failure
        ),
        f"no replacement is left of spec.recovery.maxReplacements: {limit.max_replacements} within"
        f" {limit.replacement_window_seconds} s": (
            not cause.is_announced and len(times) + len(lost) > limit.max_replacements
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _failed(seen: Expected) -> Iterator[StagePod]:
    return (pod for pod in seen.pods.values() if pod.outcome is Outcome.FAILED)


def _lost(cause: Cause, seen: Expected) -> dict[Rank, str]:
    """Return the ranks that are lost, with the uids of their pods."""
    gone = {rank for rank in seen.ranks if rank not in seen.pods}
    ended = {rank for rank, pod in seen.pods.items() if pod.outcome is Outcome.FAILED or pod.is_terminating}
    ranks = sorted(gone | ended | {cause.rank})
    return {rank: (seen.pods[rank].reference.uid if rank in seen.pods else "") for rank in ranks}


def _replacing(status: PipelineJobStatus) -> dict[Rank, LostRank]:
    return {Rank(each.replica, each.stage): each for each in recovery_of(status).replacing}


def _is_old(pod: StagePod, lost: LostRank | None) -> bool:
    return lost is not None and pod.reference.uid == lost.uid


def _step(observed: Observed, status: PipelineJobStatus) -> int:
    return max((each.step for each in observed.accounts), default=status.step or 0)


def _spare_of(rank: Rank, status: PipelineJobStatus) -> int | None:
    return next((each.spare for each in status.stages if (each.replica, each.stage) == rank), None)


def _name(rank: Rank, status: PipelineJobStatus) -> str:
    return next((each.pod for each in status.stages if (each.replica, each.stage) == rank), str(rank))


def _of_attempt(observed: Observed, status: PipelineJobStatus) -> dict[Rank, Progress]:
    return {Rank(each.replica, each.stage): each for each in observed.accounts if each.attempt == status.attempt}


def _waits(account: Progress | None) -> bool:
    return account is not None and account.awaits_incarnation and account.control_port is not None


def _left(accounts: Iterable[Progress]) -> dict[Rank, int]:
    """Return the ranks that left on request, and the steps after which they did, by what the others say."""
    told = ((Rank(lost.replica, lost.stage), lost.handed_over) for each in accounts for lost in each.lost)
    return {rank: step for rank, step in told if step is not None}


def _describe_handover(left: Mapping[Rank, int]) -> str:
    if not left:
        return ""
    who = " and ".join(str(rank) for rank in sorted(left))
    return f"; {who} had handed over after step {max(left.values())}, from where all go on"


def member(rank: Rank, pod: StagePod, account: Progress) -> Member:
    """Return a rank of a meeting, by what its pod and itself say of where it is reached."""
    address = str((pod.raw.get("status") or {}).get("podIP") or "")
    host = f"[{address}]" if ":" in address else address
    return Member(replica=rank.replica, stage=rank.stage, address=f"{host}:{account.control_port}")
