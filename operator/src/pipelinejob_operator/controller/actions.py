"""What a status asks of the cluster, given what is there: pods to take away, objects to make, gangs to let go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Mode, PipelineJobSpec
from pipelinejob.spec.reported.conditions import State
from pipelinejob_operator.cluster import Change, Object, Reference
from pipelinejob_operator.controller.observing.observe import Observed, wanted_plan
from pipelinejob_operator.controller.turns import moving
from pipelinejob_operator.controller.turns.failing import replacing, sparing
from pipelinejob_operator.controller.turns.measurements import placement_of
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.controller.turns.waiting.late import missing_pods, numbers_to_tell
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, parse_time
from pipelinejob_operator.objects.making.manifests import let_go, plan_config_map, services_of, stage_pod
from pipelinejob_operator.objects.making.pod_template import merge
from pipelinejob_operator.objects.making.spares import spare_pod
from pipelinejob_operator.objects.making.tokens import with_token
from pipelinejob_operator.objects.peers.provisioning import consumption
from pipelinejob_operator.objects.pods import StagePod

_PODS_A_PASS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """Deletions come first, changes of pods last."""

    delete: tuple[Reference, ...] = ()
    apply: tuple[Object, ...] = ()
    change: tuple[Change, ...] = ()


def follow(turn: Turn, observed: Observed, settings: ControllerSettings, *, planner: Callable[[Job], Plan]) -> Actions:
    """Return what brings the cluster to what the status says; nothing if it is there."""
    spec = observed.job.spec
    if turn.status.state in {State.SUCCEEDED, State.FAILED}:
        return Actions(delete=_after_the_end(turn, observed, spec, settings))
    stale = [pod for pod in observed.pods if pod.attempt != turn.status.attempt]
    if stale or spec is None:
        going = _first_to_go(stale, observed, spec)
        return Actions(delete=tuple(pod.reference for pod in going if not pod.is_terminating))
    if moving.is_decided_now(turn):
        return Actions()
    job = replace(observed.job, status=turn.status)
    if observed.in_the_way or not (job.is_placed or (job.binds_late and job.has_begun)):
        return Actions()
    strays = (
        *(pod.reference for pod in moving.strays(job.status, job.ranks, observed.pods)),
        *_surplus(job, observed),
    )
    ended = tuple(pod.reference for pod in observed.pods if outlived_s(pod, turn.now, settings) == 0)
    if replacing.recovery_of(job.status).replacing:
        # One that is asked to leave gets its grace, unless nobody is left there to let it go.
        lost = replacing.old_pods(observed.pods, job.status)
        held = [pod for pod in lost if not pod.is_terminating or pod.node in observed.silent_nodes]
        gently = replacing.asked_to_leave(job.status) if spec.recovery.in_place else frozenset()
        leaving = tuple(pod.reference if pod.rank in gently else replace(pod.reference, grace_s=0) for pod in held)
        known = {each.uid for each in leaving}
        return Actions(
            delete=(*leaving, *(each for each in strays if each.uid not in known)),
            apply=_replacements(job, spec, observed, settings),
        )
    gang = _of_gang(job, spec, observed, settings, planner=planner, now=turn.now)
    return replace(gang, delete=tuple(dict.fromkeys((*ended, *strays))))


def _of_gang(
    job: Job,
    spec: PipelineJobSpec,
    observed: Observed,
    settings: ControllerSettings,
    *,
    planner: Callable[[Job], Plan],
    now: datetime,
) -> Actions:
    """Return what makes the gang whole, and then lets it go, or tells it its numbers."""
    furniture = _furniture(job, observed, planner)
    if job.binds_late and job.is_placed:
        return Actions(apply=furniture, change=numbers_to_tell(job, observed, settings))
    if job.binds_late:
        return Actions(apply=(*furniture, *missing_pods(job, spec, observed, settings, now=now)))
    if job.status.released_time is None:
        return Actions(apply=(*furniture, *_missing(job, spec, observed, settings)))
    joining = _joining(job, spec, observed, settings)
    return Actions(
        apply=(*furniture, *joining.apply, *_spares(job, spec, observed, settings)),
        change=(*_gated(job, observed), *joining.change),
    )


def _surplus(job: Job, observed: Observed) -> tuple[Reference, ...]:
    """Name what is kept no longer, or has been taken the place of; of a silent node nobody else would let it go."""
    return tuple(
        replace(pod.reference, grace_s=0) if pod.node in observed.silent_nodes else pod.reference
        for pod in sparing.surplus(job.status, observed)
        if not pod.is_terminating or pod.node in observed.silent_nodes
    )


def _spares(job: Job, spec: PipelineJobSpec, observed: Observed, settings: ControllerSettings) -> tuple[Object, ...]:
    """Make the pods of spares that have a node."""
    pods = (
        spare_pod(job, spec, each.number, attempt=job.status.attempt, settings=settings, node=each.node)
        for each in sparing.unmade(job, job.status, observed)
    )
    return tuple(with_token(pod, observed.secret) for pod in pods)


def _joining(job: Job, spec: PipelineJobSpec, observed: Observed, settings: ControllerSettings) -> Actions:
    """Make the pods of further replicas, held until all of them stand, and then let them go."""
    resizing = moving.under_way(job.status)
    if resizing is None or resizing.decided:
        return Actions()
    nodes = {Rank(each.replica, each.stage): each.node for each in resizing.joining}
    present = {pod.rank for pod in observed.pods}
    made = (
        with_token(stage_pod(job, spec, rank, attempt=job.status.attempt, settings=settings), observed.secret)
        for rank in islice((rank for rank in nodes if rank not in present), _PODS_A_PASS)
    )
    held = (pod for pod in observed.pods if pod.rank in nodes and pod.is_gated and not pod.is_terminating)
    is_let_go = resizing.released_time is not None
    change = tuple((pod.raw, let_go(pod.raw, nodes[pod.rank])) for pod in held if is_let_go)
    return Actions(apply=tuple(made), change=change[:_PODS_A_PASS])


def _first_to_go(stale: Sequence[StagePod], observed: Observed, spec: PipelineJobSpec | None) -> Sequence[StagePod]:
    """Of a chain that is to leave the first stage goes before the others: they compute the answers that it ends."""
    if spec is None or spec.mode is not Mode.SERVE or not spec.suspend:
        return stale
    fronts = [pod for pod in stale if pod.rank.stage == 0 and not pod.is_done and pod.node not in observed.silent_nodes]
    return fronts or stale


def outlived_s(pod: StagePod, now: datetime, settings: ControllerSettings) -> float | None:
    """Return the seconds that what lives on beside an ended trainer still has; None where nothing does.

    A kubelet ends side-cars of its own kind itself, and a pod that ends so keeps its logs. Any
    other container would hold the stage's GPUs for ever.
    """
    if pod.outcome is None or pod.is_done or pod.is_terminating:
        return None
    finished = pod.ending.finished if pod.ending else None
    left = settings.sidecar_wait_s - (now - finished).total_seconds() if finished else 0.0
    return left if 0 < left <= 2 * settings.sidecar_wait_s else 0.0  # more than that is a clock that runs ahead


def _after_the_end(
    turn: Turn, observed: Observed, spec: PipelineJobSpec | None, settings: ControllerSettings
) -> tuple[Reference, ...]:
    # Ended pods hold nothing and keep their logs; whatever still runs goes.
    job = observed.job
    running = tuple(
        pod.reference
        for pod in observed.pods
        if not (pod.is_done or pod.is_terminating or outlived_s(pod, turn.now, settings))
    )
    if spec is None or spec.ttl_seconds_after_finished is None or turn.status.completion_time is None:
        return running
    end = parse_time(turn.status.completion_time) + timedelta(seconds=spec.ttl_seconds_after_finished)
    if turn.now < end:
        return running
    return (*running, Reference(kind=names.KIND, namespace=job.key.namespace, name=job.key.name, uid=job.uid))


def _furniture(job: Job, observed: Observed, planner: Callable[[Job], Plan]) -> tuple[Object, ...]:
    """Return what pods mount and are named by, where it is not there, or is of an older attempt."""
    services = tuple(each for each in services_of(job) if each["metadata"]["name"] not in observed.services)
    if observed.plan_version == wanted_plan(job.status):
        return services
    placement = placement_of(job.status) if job.is_placed else None
    plan = planner(job).model_copy(update={"placement": placement})
    config_map = plan_config_map(job, plan, attempt=job.status.attempt, resizes=wanted_plan(job.status)[1])
    return (_exactly(observed.plan_uid, config_map) if observed.plan_uid else config_map, *services)


def _exactly(uid: str, item: Object) -> Object:
    # Without its uid it would be made, where it is only to be changed.
    return {**item, "metadata": {**item["metadata"], "uid": uid}}


def _missing(job: Job, spec: PipelineJobSpec, observed: Observed, settings: ControllerSettings) -> tuple[Object, ...]:
    """Some of the pods that are missing; once these stand, the next pass makes more, and others have their turn."""
    present = {pod.rank for pod in observed.pods}
    consumes = {"metadata": {"annotations": consumption(observed.autoscaler.request if observed.autoscaler else None)}}
    pods = (
        stage_pod(job, spec, rank, attempt=job.status.attempt, settings=settings)
        for rank in islice((rank for rank in job.ranks if rank not in present), _PODS_A_PASS)
    )
    told = (with_token(pod, observed.secret) if spec.recovery.in_place else pod for pod in pods)
    return tuple(merge(dict(pod), consumes) if consumes["metadata"]["annotations"] else pod for pod in told)


def _replacements(
    job: Job, spec: PipelineJobSpec, observed: Observed, settings: ControllerSettings
) -> tuple[Object, ...]:
    """Make lost ranks' pods anew, under the same names, free to go where they were."""
    nodes = {Rank(stage.replica, stage.stage): stage.node for stage in job.status.stages}
    pods = (
        stage_pod(job, spec, rank, attempt=job.status.attempt, settings=settings, node=nodes[rank])
        for rank in replacing.missing_ranks(observed.pods, job.status)
    )
    return tuple(with_token(pod, observed.secret) if spec.recovery.in_place else pod for pod in pods)


def _gated(job: Job, observed: Observed) -> tuple[Change, ...]:
    """Let some of the pods go that are held; these are seen to have gone, and the next pass lets more go."""
    nodes = {Rank(stage.replica, stage.stage): stage.node or "" for stage in job.status.stages}
    held = (pod for pod in observed.pods if pod.is_gated and not pod.is_terminating and pod.rank in nodes)
    next_to_go = sorted(held, key=lambda pod: pod.rank)[:_PODS_A_PASS]
    return tuple((pod.raw, let_go(pod.raw, nodes[pod.rank])) for pod in next_to_go)
