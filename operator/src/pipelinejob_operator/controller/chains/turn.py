"""The status of a job that serves, from its chains: how many answer, what is exchanged, and what is the matter."""

from collections.abc import Iterable, Mapping

from pipelinejob.base import names
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType, State
from pipelinejob_operator.controller.chains.moves import Chain, Moves
from pipelinejob_operator.controller.chains.observing import Seen
from pipelinejob_operator.controller.looking_again import seconds_to_deadline
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.transitions import AS_WANTED, Turn
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.job import Job, condition, format_time
from pipelinejob_operator.objects.making.manifests import first_stages

_OF_PODS = (ConditionType.ADMITTED, ConditionType.PLACED)
EXCHANGING, GROWING, SHRINKING = "RollingUpdate", "Growing", "Shrinking"


def is_overdue(turn: Turn, spec: PipelineJobSpec) -> bool:
    """Tell whether the job was active for as long as it may be."""
    return seconds_to_deadline(turn, spec, default=1.0) <= 0


def overdue(turn: Turn, spec: PipelineJobSpec) -> Turn:
    """End a job that was active for as long as it may be."""
    message = f"the job was active for {spec.active_deadline_seconds} s, spec.activeDeadlineSeconds; allow it more"
    return transitions.fail(turn, "DeadlineExceeded", message)


def is_hopeless(seen: Seen, wanted: int) -> bool:
    """Tell whether every chain that is wanted has failed for ever, and no older one answers."""
    failed = sum(each.failure is not None and each.is_current for each in seen.chains)
    return failed >= wanted and not any(each.stays for each in seen.chains)


def give_up(turn: Turn, seen: Seen) -> Turn:
    """End a job of which every chain has failed."""
    first = next(each for each in seen.chains if each.failure is not None and each.is_current)
    why = condition(seen.of(first).status, ConditionType.SUCCEEDED)
    assert why is not None, "it has failed"
    return transitions.fail(turn, why.reason, f"chain {first.name}: {why.message}")


def tell_moves(turn: Turn, moves: Moves) -> Turn:
    """Say in events which chains begin and which drain."""
    for number in moves.begin:
        turn = turn.told("ChainBegins", f"Chain {names.chain_name(turn.job.key.name, number=number)} begins")
    for each in moves.drain:
        turn = turn.told("ChainDrains", f"Chain {each.name} ends the answers in work, and takes no more")
    return turn


def serve(turn: Turn, seen: Seen, spec: PipelineJobSpec, moves: Moves, *, trouble: Fact | None) -> Turn:
    """Say how many chains answer, and how far they are those that the spec asks for.

    `trouble` is what the cluster refused.
    """
    wanted = spec.parallelism.data
    staying = [each for each in seen.chains if each.stays]
    ready = sum(each.is_ready for each in staying)
    _, unavailable = rolling(spec)
    turn = turn.having(
        start_time=turn.status.start_time or format_time(turn.now),
        replicas=len(staying) + len(moves.begin) - len(moves.drain),
        selector=",".join(f"{name}={value}" for name, value in first_stages(turn.job).items()),
        stages_ready=_stages_ready(seen, staying, spec),
        plan=next((plan for each in seen.jobs.values() if (plan := each.status.plan) is not None), turn.status.plan),
    )
    is_serving = ready >= max(1, wanted - unavailable)
    failed = [each for each in seen.chains if each.failure is not None]
    answering = _answering(ready, wanted)
    state = State.SERVING if ready >= wanted and not failed else State.DEGRADED if ready else State.STARTING
    waiting, there = _waiting(seen, staying), f"{len(staying)} {'chain' if len(staying) == 1 else 'chains'}"
    facts: dict[ConditionType, Fact] = {
        ConditionType.SUCCEEDED: Fact(None, "Active", "the job has not ended yet"),
        ConditionType.SUSPENDED: Fact(False, "NotSuspended"),
        ConditionType.READY: Fact(is_serving, "ChainsReady" if is_serving else "Starting", answering),
        ConditionType.STALLED: trouble or Fact(False, "AsExpected"),
        ConditionType.DEGRADED: _degraded(seen, failed),
        **{kind: waiting.get(kind) or Fact(True, "Chains", there) for kind in _OF_PODS},
        **_exchange(turn, seen, wanted),
    }
    was_ready = condition(turn.status, ConditionType.READY)
    is_news = is_serving and (was_ready is None or was_ready.status is not ConditionStatus.TRUE)
    turn = turn.finding(state, facts)
    return turn.told("ChainsReady", f"{answering}") if is_news else turn


def rolling(spec: PipelineJobSpec) -> tuple[int, int]:
    """Return how many chains there may be beyond those wanted, and how many may be missing."""
    assert spec.serving is not None, "a job that serves"
    return spec.serving.rolling_update.limits(spec.parallelism.data)


def resumed(turn: Turn) -> Turn:
    """Begin again after a suspension, if there was one."""
    last = condition(turn.status, ConditionType.SUSPENDED)
    return transitions.resume(turn) if last is not None and last.reason in {"Suspended", "Suspending"} else turn


def suspended(turn: Turn, seen: Seen) -> Turn:
    """Let all chains go, because the spec says so."""
    turn = transitions.suspend(turn, is_still_running=any(not each.has_left for each in seen.chains))
    return turn.having(replicas=0, stages_ready=None)


def _answering(ready: int, wanted: int) -> str:
    return f"{ready} of {wanted} {'chain answers' if wanted == 1 else 'chains answer'}"


def _stages_ready(seen: Seen, staying: Iterable[Chain], spec: PipelineJobSpec) -> str:
    stages = [stage for each in staying for stage in seen.of(each).status.stages]
    total = spec.parallelism.data * spec.parallelism.pipeline
    return f"{min(total, sum(each.ready for each in stages))}/{total}"  # there may be more while they are exchanged


def _waiting(seen: Seen, staying: Iterable[Chain]) -> Mapping[ConditionType, Fact]:
    """Say, in its own words, of the first chain that has no place why it has none."""
    for each in staying:
        job = seen.of(each)
        found = {kind: said for kind in _OF_PODS if (said := condition(job.status, kind)) is not None}
        if any(said.status is not ConditionStatus.TRUE for said in found.values()):
            return {kind: Fact(False, said.reason, _of(job, said.message)) for kind, said in found.items()}
    return {}


def _degraded(seen: Seen, failed: Iterable[Chain]) -> Fact:
    """Say which chain has failed for ever, or else is worse than planned."""
    for each in failed:
        message = f"{each.failure}; it is not begun again: mend the spec, or delete the chain to have it tried again"
        return Fact(True, "ChainFailed", f"chain {each.name}: {message}")
    for job in seen.jobs.values():
        said = condition(job.status, ConditionType.DEGRADED)
        if said is not None and said.status is ConditionStatus.TRUE:
            return Fact(True, said.reason, _of(job, said.message))
    return Fact(False, "AsExpected")


def _of(job: Job, message: str) -> str:
    return f"chain {job.key.name}: {message}"


def _exchange(turn: Turn, seen: Seen, wanted: int) -> dict[ConditionType, Fact]:
    """Say how far the chains are those that the spec asks for; nothing of one that never had others."""
    kind, last = ConditionType.RESIZED, condition(turn.status, ConditionType.RESIZED)
    new = [each for each in seen.chains if each.stays and each.is_current]
    answering, others = sum(each.is_ready for each in new), [each for each in seen.chains if not each.is_current]
    leaving = sum(each.is_leaving for each in seen.chains)
    if others:
        message = f"{answering} of {wanted} chains are of the spec as it is now, {len(others)} older ones are left"
        return {kind: Fact(False, EXCHANGING, message)}
    if leaving or len(new) > wanted:
        return {kind: Fact(False, SHRINKING, f"{wanted} chains stay, {leaving} end the answers in work")}
    if last is not None and answering < wanted and (last.status is not ConditionStatus.TRUE or len(new) < wanted):
        return {kind: Fact(False, GROWING, _answering(answering, wanted))}
    if last is None and answering < wanted:
        return {}
    return {kind: AS_WANTED}
