"""Another number of replicas from memory: the stages that stay keep their processes, and what they hold.

First the further replicas come up beside the gang, which trains on: gated until all their pods are there, and not a
part of it. Once all of them wait to be called it is **decided**: the status has the new ranks and the new plan's
version, then the config map has that plan, then all are told of an incarnation that begins at the next step border.
From then on whatever happens is recovery in place, of the new gang; before, the job simply stays as it is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pipelinejob.base import names
from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.contract.incarnation import Incarnation
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Progress
from pipelinejob.placement.job import crossings
from pipelinejob.schedules.families import FAMILIES
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.resizing import JoiningRank, Resizing
from pipelinejob.spec.status import UP, ConditionType, PipelineJobStatus, StageStatus, State, decimal
from pipelinejob_operator.admission.pods.substitute import Place
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns import resizing as to_checkpoint
from pipelinejob_operator.controller.turns.failing import replacing
from pipelinejob_operator.controller.turns.measurements import nodes_in_short, placement_of, summarize
from pipelinejob_operator.controller.turns.transitions import Turn, resized_facts
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.job import Job, Rank, format_time, parse_time, read_job
from pipelinejob_operator.objects.making.plan_text import plan_text
from pipelinejob_operator.objects.making.tokens import derived
from pipelinejob_operator.objects.pods import StagePod

JOINING_FAILED = "JoiningFailed"
_CHUNK = re.compile(r"(\d+)-(\d+)")
_ORDERED_OTHERWISE = frozenset({ScheduleName.AUTO, ScheduleName.CUSTOM})


def under_way(status: PipelineJobStatus) -> Resizing | None:
    """Return the change of the number of replicas that is under way."""
    return status.recovery.resizing if status.recovery else None


def alike(before: Chosen, data: int) -> Chosen | None:
    """Return the same with so many replicas, which share the same micro-batches; None where they cannot equally."""
    of_all = before.micro_batches * before.data
    if before.batch_size is not None or of_all % data:
        return None
    return before.model_copy(update={"data": data, "micro_batches": of_all // data})


def why_not(job: Job, chosen: Chosen) -> str:
    """Say why a job that runs cannot go over to these degrees from memory; '' if it can, as far as its status tells."""
    status = job.status
    recovery = replacing.recovery_of(status)
    reasons = {
        "its stages are not all up and training": (
            status.state not in UP or not recovery.incarnation or recovery.since is not None
        ),
        f"the order of {chosen.schedule} follows from more than its name": (
            chosen.schedule in _ORDERED_OTHERWISE or FAMILIES[chosen.schedule].is_asynchronous
        ),
        "the status does not say which layers its stages have": not kept_layers(status),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def kept_layers(status: PipelineJobStatus) -> tuple[int, ...]:
    """Return the layers of each stretch as the gang runs now, first to last; none where the status does not say."""
    held = [each.layers for each in (status.plan.stages if status.plan else ())]
    stretches = sorted({(int(first), int(last) + 1) for each in held for first, last in _CHUNK.findall(each)})
    is_whole = [first for first, _ in stretches] == [0, *(end for _, end in stretches[:-1])]
    return tuple(end - first for first, end in stretches) if is_whole else ()


def new_ranks(job: Job, chosen: Chosen) -> list[Rank]:
    """Return the ranks that these degrees have and the job has not."""
    have = set(job.ranks)
    ranks = (Rank(replica, stage) for replica in range(chosen.data) for stage in range(chosen.pipeline))
    return [rank for rank in ranks if rank not in have]


def begin(turn: Turn, chosen: Chosen, places: Mapping[Rank, Place]) -> Turn:
    """Keep room for further replicas, if there are any, and have their pods made; the gang trains on."""
    before = turn.job.status.chosen
    assert before is not None, "only what was chosen is chosen anew"
    resizing = Resizing(
        chosen=chosen,
        wanted=turn.job.wanted_replicas or chosen.data,
        layers=kept_layers(turn.status),
        joining=tuple(
            JoiningRank(replica=rank.replica, stage=rank.stage, node=place.node, path="/".join(place.path))
            for rank, place in sorted(places.items())
        ),
        since=format_time(turn.now),
    )
    how = (
        f"{len(places)} more stages come up, and join at a step border; the others train on until then"
        if places
        else "the others leave at the next step border"
    )
    message = f"goes from {before.data} to {chosen.data} replicas from memory: {how}"
    turn = turn.finding(_state(turn), {ConditionType.RESIZED: Fact(False, "Resizing", message)})
    return _with(turn, resizing).told("Resizing", f"G{message[1:]}")


def advance(turn: Turn, observed: Observed, planner: Callable[[Job], Plan]) -> tuple[Turn, bool]:
    """Go on with a change that is under way; tell whether that is all that this pass is about."""
    resizing = under_way(turn.status)
    if resizing is None:
        return turn, False
    if resizing.decided:
        return _go_over(turn, observed, resizing)
    if turn.job.wanted_replicas != resizing.wanted:
        return give_up(turn, "another number is asked for by now"), False
    pods = {rank: observed.current.get(rank) for rank in _joining(resizing)}
    failed = _why_failed(turn, pods, resizing, observed.job.spec)
    if failed:
        return give_up(turn, failed), False
    if resizing.joining and resizing.released_time is None:
        is_gathered = all(pod is not None and not pod.is_terminating for pod in pods.values())
        released = resizing.model_copy(update={"released_time": format_time(turn.now)})
        return (_with(turn, released) if is_gathered else turn), False
    return (_decide(turn, planner), True) if _may_be_decided(turn, observed, resizing) else (turn, False)


def give_up(turn: Turn, why: str) -> Turn:
    """Stay with the replicas that there are; what came up for more is taken away. It is tried again later."""
    resizing = under_way(turn.status)
    if resizing is None or resizing.decided:
        return turn
    return to_checkpoint.hold(_with(turn, None), JOINING_FAILED, f"{why}; nothing of the job that trains was touched")


def strays(status: PipelineJobStatus, ranks: Sequence[Rank], pods: Iterable[StagePod]) -> tuple[StagePod, ...]:
    """Return pods of the present attempt of ranks that it has not, nor is about to have; those that leave may end."""
    resizing = under_way(status)
    if resizing is not None and resizing.decided:
        return ()
    own = {*ranks, *(_joining(resizing) if resizing else ())}
    return tuple(
        pod for pod in pods if pod.attempt == status.attempt and pod.rank not in own and not pod.is_terminating
    )


def has_ended(status: PipelineJobStatus, ranks: Sequence[Rank], done: frozenset[Rank]) -> bool:
    """Tell whether all have completed but those that were to join, and found nothing left to do."""
    resizing = under_way(status)
    if resizing is None or not resizing.decided:
        return False
    joining = _joining(resizing)
    return bool(done) and {*ranks} <= done | joining


def told_plan(turn: Turn, observed: Observed, planner: Callable[[Job], Plan]) -> Incarnation | None:
    """Return who meets, with the plan by which a gang trains that has other replicas than it began with."""
    if turn.meets is None or not replacing.recovery_of(turn.status).resizes:
        return turn.meets
    plan = planner(replace(observed.job, status=turn.status)).model_copy(
        update={"placement": placement_of(turn.status)}
    )
    return turn.meets.model_copy(update={"plan": plan_text(plan)})


def is_decided_now(turn: Turn) -> bool:
    """Tell whether this pass decides on other ranks than those that it has read: what follows is for the next one."""
    before, after = replacing.recovery_of(turn.job.status), replacing.recovery_of(turn.status)
    return before.resizes != after.resizes


def _joining(resizing: Resizing) -> set[Rank]:
    return {Rank(each.replica, each.stage) for each in resizing.joining}


def _why_failed(
    turn: Turn, pods: Mapping[Rank, StagePod | None], resizing: Resizing, spec: PipelineJobSpec | None
) -> str:
    for rank, pod in sorted(pods.items()):
        if pod is not None and pod.outcome is not None:
            ending = pod.ending
            return f"{rank}, which was to join, ended: {(ending and ending.message) or 'without saying why'}"
        if resizing.released_time is not None and (pod is None or pod.is_terminating):
            return f"{rank}, which was to join, was taken away"
    waited_s = (turn.now - parse_time(resizing.since)).total_seconds()
    limit_s = spec.recovery.wait_seconds if spec else 0
    return f"the new replicas were not up within {limit_s} s, spec.recovery.waitSeconds" if waited_s > limit_s else ""


def _may_be_decided(turn: Turn, observed: Observed, resizing: Resizing) -> bool:
    """Tell whether all of the gang train, and all that are to join wait to be called."""
    accounts, recovery = _accounts(observed), replacing.recovery_of(turn.status)
    trains = all(_trains(accounts.get(rank), recovery.incarnation) for rank in observed.job.ranks)
    comes = all(rank in accounts and _waits(accounts[rank]) for rank in _joining(resizing))
    return trains and comes and recovery.since is None and turn.status.state in UP


def as_decided(job: Job, status: PipelineJobStatus) -> Job:
    """Return a job whose status begins a change as it will be read once that is decided."""
    recovery, resizing = replacing.recovery_of(status), under_way(status)
    assert resizing is not None, "it has begun"
    decided = resizing.model_copy(update={"decided": True, "after": recovery.incarnation})
    changes = {"resizing": decided, "resizes": recovery.resizes + 1, "layers": resizing.layers}
    of_ranks = _of_ranks(job, status, resizing)
    written = of_ranks.model_copy(update={"recovery": recovery.model_copy(update=changes)})
    return read_job({**job.raw, "status": written.dump()})


def _decide(turn: Turn, planner: Callable[[Job], Plan]) -> Turn:
    """Write the new ranks, and what is planned for them."""
    decided = as_decided(turn.job, turn.status)
    try:
        plan = planner(decided)
    except (SpecError, NoPlacementError) as error:
        return give_up(turn, str(error))
    turn = replace(turn, status=decided.status.model_copy(update={"plan": summarize(plan)}))
    return replace(turn, look_again_s=0.0)


def _of_ranks(job: Job, status: PipelineJobStatus, resizing: Resizing) -> PipelineJobStatus:
    """Return the status with the ranks of the new number of replicas."""
    stages = (
        *(each for each in status.stages if each.replica < resizing.chosen.data),
        *(
            StageStatus(
                replica=each.replica,
                stage=each.stage,
                pod=names.pod_name(job.key.name, replica=each.replica, stage=each.stage),
                node=each.node,
                path=each.path,
            )
            for each in resizing.joining
        ),
    )
    return status.model_copy(
        update={
            "chosen": resizing.chosen,
            "replicas": resizing.chosen.data,
            "stages": stages,
            "stages_ready": f"{sum(each.ready for each in stages)}/{len(stages)}",
            "nodes": nodes_in_short(stages),
            "crossings": _crossings(stages, status.crossings),
            "placement": None,  # it was chosen for the ranks that there were
        }
    )


def _crossings(stages: Sequence[StageStatus], before: Mapping[str, int] | None) -> dict[str, int] | None:
    """Count the boundaries that cross each level, whose names the count before has."""
    replicas = sorted({each.replica for each in stages})
    paths = [
        [tuple((each.path or "").split("/")) for each in stages if each.replica == replica] for replica in replicas
    ]
    counts = [crossings(of_one) for of_one in paths]
    if before is None or any(len(each) != len(before) for each in counts):
        return None
    return {level: sum(each[depth] for each in counts) for depth, level in enumerate(before)}


def _go_over(turn: Turn, observed: Observed, resizing: Resizing) -> tuple[Turn, bool]:
    """Tell all of the border at which they go over, until they have; a loss meanwhile is recovery's."""
    accounts, recovery = _accounts(observed), replacing.recovery_of(turn.status)
    ranks = observed.job.ranks
    if all(rank in accounts and _trains_on(accounts[rank], resizing) for rank in ranks):
        return _done(turn, [accounts[rank] for rank in ranks], resizing), False
    joining = _joining(resizing)
    is_interrupted = any(
        each.awaits_incarnation and (rank not in joining or each.incarnation > resizing.after)
        for rank, each in accounts.items()
    )
    if is_interrupted:
        return turn, False
    turn = replace(turn, look_again_s=replacing.LOOK_S)
    there = {rank for rank, pod in observed.current.items() if pod.outcome is None and not pod.is_terminating}
    has_begun = any(_has_gone_over(each, resizing) for each in accounts.values())
    if has_begun or not {*ranks} <= there <= accounts.keys() or _all_know(accounts, recovery.incarnation, resizing):
        return turn, True
    number = max(recovery.incarnation, *(each.moves_to or each.incarnation for each in accounts.values())) + 1
    incarnation = Incarnation(
        number=number,
        attempt=turn.status.attempt,
        members=tuple(replacing.member(rank, observed.current[rank], accounts[rank]) for rank in ranks),
        key=derived(observed.secret, "meeting"),
        at_border=True,
    )
    turn = turn.having(recovery=recovery.model_copy(update={"incarnation": number}))
    return replace(turn, meets=incarnation), True


def _done(turn: Turn, accounts: Sequence[Progress], resizing: Resizing) -> Turn:
    stalls = [each.stall_s for each in accounts if each.stall_s is not None]
    step = min(each.step for each in accounts)
    stood = f"; training stood still for {max(stalls):.1f} s" if stalls else ""
    recovery = replacing.recovery_of(turn.status)
    stall_seconds = decimal(max(stalls)) if stalls else recovery.stall_seconds
    changes = {"resizing": None, "stall_seconds": stall_seconds, "replacing": (), "since": None}
    turn = turn.having(recovery=recovery.model_copy(update=changes))
    turn = turn.finding(_state(turn), resized_facts(turn))
    number = "1 replica" if resizing.chosen.data == 1 else f"{resizing.chosen.data} replicas"
    return turn.told("Resized", f"Trains with {number} since about step {step}, from memory{stood}")


def _all_know(accounts: Mapping[Rank, Progress], number: int, resizing: Resizing) -> bool:
    return number > resizing.after and all(each.moves_to == number for each in accounts.values())


def _has_gone_over(account: Progress, resizing: Resizing) -> bool:
    return account.incarnation > resizing.after and not account.awaits_incarnation


def _trains_on(account: Progress, resizing: Resizing) -> bool:
    return _has_gone_over(account, resizing) and not account.stands_still


def _trains(account: Progress | None, incarnation: int) -> bool:
    return account is not None and account.incarnation == incarnation and not account.awaits_incarnation


def _waits(account: Progress) -> bool:
    return account.awaits_incarnation and account.control_port is not None


def _accounts(observed: Observed) -> dict[Rank, Progress]:
    attempt = observed.job.status.attempt
    return {Rank(each.replica, each.stage): each for each in observed.accounts if each.attempt == attempt}


def _with(turn: Turn, resizing: Resizing | None) -> Turn:
    recovery = replacing.recovery_of(turn.status)
    return turn.having(recovery=recovery.model_copy(update={"resizing": resizing}))


def _state(turn: Turn) -> State:
    return turn.status.state or State.PENDING
