"""Other replicas, stages, layers or another schedule from memory: who stays keeps the process, and what it holds.

First the further ranks come up beside the gang, which trains on: gated until all their pods are
there, and not a part of it. Once all of them wait to be called it is **decided**: the status has
the new ranks and the new plan's version, then the config map has that plan, then all are told of
an incarnation that begins at the next step border. From then on whatever happens is recovery in
place, of the new gang; before, the job simply stays as it is. Only where stages leave that hold
layers which no other has, and one is lost before the border, is it decided back: the gang recovers
as it was, and the change is begun anew later.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pipelinejob.base import names
from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.contract.incarnation import Incarnation
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Progress
from pipelinejob.placement.job import crossings
from pipelinejob.search.found import schedule_title
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.reported.conditions import UP, ConditionType, State
from pipelinejob.spec.reported.resizing import JoiningRank, Resizing, Shape
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.status import PipelineJobStatus, decimal
from pipelinejob_operator.admission.pods.substitute import Place
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns import resizing as to_checkpoint
from pipelinejob_operator.controller.turns import shapes
from pipelinejob_operator.controller.turns.failing import replacing
from pipelinejob_operator.controller.turns.measurements import nodes_in_short, placement_of, summarize
from pipelinejob_operator.controller.turns.transitions import Turn, resized_facts
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.job import Job, Rank, format_time, parse_time, read_job
from pipelinejob_operator.objects.making.plan_text import plan_text
from pipelinejob_operator.objects.making.tokens import derived
from pipelinejob_operator.objects.pods import Outcome, StagePod

JOINING_FAILED = "JoiningFailed"


def under_way(status: PipelineJobStatus) -> Resizing | None:
    """Return the change that is under way."""
    return status.recovery.resizing if status.recovery else None


def begin(turn: Turn, chosen: Chosen, places: Mapping[Rank, Place], layers: shapes.Layers = ()) -> Turn:
    """Keep room for further ranks, if there are any, and have their pods made; the gang trains on.

    `layers` are those of each stretch, where they do not stay.
    """
    before, now = shapes.present(turn.job), shapes.kept_layers(turn.status)
    assert before is not None, "a gang that trains has been decided"
    resizing = Resizing(
        chosen=chosen,
        wanted=turn.job.wanted_replicas or chosen.data,
        layers=layers or now,
        joining=tuple(
            JoiningRank(replica=rank.replica, stage=rank.stage, node=place.node, path="/".join(place.path))
            for rank, place in sorted(places.items())
        ),
        since=format_time(turn.now),
        asked=shapes.in_short(turn.job),
        before=_before(turn, before, chosen, now) if layers else None,
    )
    how = (
        f"{_coming(len(places))} at a step border; the others train on until then"
        if places
        else "the others leave at the next step border"
        if (chosen.data, chosen.pipeline) < (before.data, before.pipeline)
        else "all go over at the next step border"
    )
    message = f"goes {shapes.described(before, chosen, (now, resizing.layers))} from memory: {how}"
    turn = turn.finding(_state(turn), {ConditionType.RESIZED: Fact(False, "Resizing", message)})
    return _with(turn, resizing).told("Resizing", f"G{message[1:]}")


def _coming(number: int) -> str:
    return "1 more stage comes up, and joins" if number == 1 else f"{number} more stages come up, and join"


def advance(turn: Turn, observed: Observed, planner: Callable[[Job], Plan]) -> tuple[Turn, bool]:
    """Go on with a change that is under way; tell whether that is all that this pass is about."""
    resizing = under_way(turn.status)
    if resizing is None:
        return turn, False
    if resizing.decided:
        return _go_over(turn, observed, resizing, planner)
    if (turn.job.wanted_replicas or resizing.wanted, shapes.in_short(turn.job)) != (resizing.wanted, resizing.asked):
        return give_up(turn, "another shape is asked for by now"), False
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
    """Stay with what there is; what came up for more is taken away. It is tried again later."""
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
        pod
        for pod in pods
        if pod.attempt == status.attempt and not (pod.rank in own or pod.rank.is_spare or pod.is_terminating)
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
    return f"the further stages were not up within {limit_s} s, spec.recovery.waitSeconds" if waited_s > limit_s else ""


def _may_be_decided(turn: Turn, observed: Observed, resizing: Resizing) -> bool:
    """Tell whether all of the gang train, and all that are to join wait to be called."""
    accounts, recovery = _accounts(observed), replacing.recovery_of(turn.status)
    trains = all(_trains(accounts.get(rank), recovery.incarnation) for rank in observed.job.ranks)
    comes = all(rank in accounts and _waits(accounts[rank]) for rank in _joining(resizing))
    return trains and comes and recovery.since is None and turn.status.state in UP


def as_decided(job: Job, status: PipelineJobStatus, *, divides: bool = False) -> Job:
    """Return a job whose status begins a change as it will be read once that is decided.

    Where it `divides` them, which layers go where is still to be planned.
    """
    recovery, resizing = replacing.recovery_of(status), under_way(status)
    assert resizing is not None, "it has begun"
    decided = resizing.model_copy(update={"decided": True, "after": recovery.incarnation})
    changes = {"resizing": decided, "resizes": recovery.resizes + 1, "layers": None if divides else resizing.layers}
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
    """Return the status with the ranks that it goes over to."""
    goal = resizing.chosen
    unordered = (
        *(each for each in status.stages if each.replica < goal.data and each.stage < goal.pipeline),
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
    stages = tuple(sorted(unordered, key=lambda each: (each.replica, each.stage)))
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


def _before(turn: Turn, before: Chosen, after: Chosen, layers: shapes.Layers) -> Shape:
    """Return what a gang trains with whose layers are about to move."""
    leaving = (
        JoiningRank(replica=each.replica, stage=each.stage, node=each.node or "", path=each.path or "")
        for each in turn.status.stages
        if each.replica >= after.data or each.stage >= after.pipeline
    )
    return Shape(chosen=before, layers=layers, leaving=tuple(leaving))


def _can_return(observed: Observed, accounts: Mapping[Rank, Progress], resizing: Resizing) -> bool:
    """Tell whether a gang that was interrupted on the way still has all stages that it had, and none went over."""
    if resizing.before is None or not resizing.before.leaving:
        return False
    leaving = {Rank(each.replica, each.stage) for each in resizing.before.leaving}
    left = any(pod.outcome is Outcome.SUCCEEDED for rank, pod in observed.current.items() if rank in leaving)
    return not left and not any(_has_gone_over(each, resizing) for each in accounts.values())


def _return(turn: Turn, resizing: Resizing, planner: Callable[[Job], Plan]) -> Turn:
    """Decide back: the gang is what it was, and recovers so."""
    before = resizing.before
    assert before is not None, "the layers move"
    back = Resizing(
        chosen=before.chosen,
        wanted=resizing.wanted,
        layers=before.layers,
        joining=before.leaving,
        since=resizing.since,
        asked=resizing.asked,
        returns=True,
    )
    return _decide(_with(turn, back), planner)


def _go_over(turn: Turn, observed: Observed, resizing: Resizing, planner: Callable[[Job], Plan]) -> tuple[Turn, bool]:
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
    if is_interrupted and _can_return(observed, accounts, resizing):
        return _return(turn, resizing, planner), True
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
    step = max(each.step for each in accounts)
    stood = f"; training stood still for {max(stalls):.1f} s" if stalls else ""
    recovery = replacing.recovery_of(turn.status)
    stall_seconds = decimal(max(stalls)) if stalls else recovery.stall_seconds
    changes = {"resizing": None, "stall_seconds": stall_seconds, "replacing": (), "since": None}
    turn = turn.having(recovery=recovery.model_copy(update=changes))
    if resizing.returns:
        why = "a stage was lost before the border at which others were to leave"
        return to_checkpoint.hold(turn, JOINING_FAILED, f"{why}; all go on as they were")
    turn = turn.finding(_state(turn), resized_facts(turn))
    what = f"{shapes.counted(resizing.chosen.data, 'replica')}"
    if resizing.before is not None:
        goal = resizing.chosen
        stages = f"{shapes.counted(goal.pipeline, 'stage')} of {shapes.listed(resizing.layers)} layers"
        what = f"{stages}, {schedule_title(goal)},"
    return turn.told("Resized", f"Trains with {what} since about step {step}, from memory{stood}")


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
