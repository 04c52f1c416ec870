"""What a status asks of the cluster, given what is there: pods to take away, objects to make, gangs to let go."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from pipelinejob import names
from pipelinejob.plan import Plan
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.status import State
from pipelinejob_operator.cluster import Object, Reference
from pipelinejob_operator.controller.late import pods_to_apply
from pipelinejob_operator.controller.measurements import placement_of
from pipelinejob_operator.controller.observe import Observed
from pipelinejob_operator.controller.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, parse_time
from pipelinejob_operator.objects.manifests import headless_service, plan_config_map, stage_pod
from pipelinejob_operator.objects.pods import StagePod


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """Deletions come first."""

    delete: tuple[Reference, ...] = ()
    apply: tuple[Object, ...] = ()


def follow(turn: Turn, observed: Observed, settings: ControllerSettings, *, planner: Callable[[Job], Plan]) -> Actions:
    """Give what brings the cluster to what the status says; nothing if it is there."""
    spec = observed.job.spec
    if turn.status.state in {State.SUCCEEDED, State.FAILED}:
        return Actions(delete=_after_the_end(turn, observed, spec))
    stale = [pod for pod in observed.pods if pod.attempt != turn.status.attempt]
    if stale or spec is None:
        return Actions(delete=tuple(pod.reference for pod in stale if not pod.is_terminating))
    job = replace(observed.job, status=turn.status)
    if observed.in_the_way or not (job.is_placed or (job.binds_late and job.has_begun)):
        return Actions()
    if job.binds_late:
        return Actions(apply=(*_furniture(job, observed, planner), *pods_to_apply(job, spec, observed, settings)))
    make_pods = _missing if turn.status.released_time is None else _gated
    return Actions(apply=(*_furniture(job, observed, planner), *make_pods(job, spec, observed, settings)))


def _after_the_end(turn: Turn, observed: Observed, spec: PipelineJobSpec | None) -> tuple[Reference, ...]:
    # Ended pods hold nothing and keep their logs; whatever still runs goes.
    job = observed.job
    running = tuple(pod.reference for pod in observed.pods if not pod.is_done and not pod.is_terminating)
    if spec is None or spec.ttl_seconds_after_finished is None or turn.status.completion_time is None:
        return running
    end = parse_time(turn.status.completion_time) + timedelta(seconds=spec.ttl_seconds_after_finished)
    if turn.now < end:
        return running
    return (*running, Reference(kind=names.KIND, namespace=job.key.namespace, name=job.key.name, uid=job.uid))


def _furniture(job: Job, observed: Observed, planner: Callable[[Job], Plan]) -> tuple[Object, ...]:
    """Give what pods mount and are named by, where it is not there, or is of an older attempt."""
    service = () if observed.has_service else (headless_service(job),)
    if observed.plan_attempt == job.status.attempt:
        return service
    placement = placement_of(job.status) if job.is_placed else None
    plan = planner(job).model_copy(update={"placement": placement})
    return (plan_config_map(job, plan, attempt=job.status.attempt), *service)


def _missing(job: Job, spec: PipelineJobSpec, observed: Observed, settings: ControllerSettings) -> tuple[Object, ...]:
    present = {pod.rank for pod in observed.pods}
    return tuple(
        stage_pod(job, spec, rank, attempt=job.status.attempt, settings=settings)
        for rank in job.ranks
        if rank not in present
    )


def _gated(job: Job, spec: PipelineJobSpec, observed: Observed, settings: ControllerSettings) -> tuple[Object, ...]:
    nodes = {Rank(stage.replica, stage.stage): stage.node for stage in job.status.stages}
    return tuple(
        _exactly(
            pod, stage_pod(job, spec, pod.rank, attempt=job.status.attempt, settings=settings, node=nodes[pod.rank])
        )
        for pod in sorted(observed.pods, key=lambda pod: pod.rank)
        if pod.is_gated and not pod.is_terminating
    )


def _exactly(pod: StagePod, item: Object) -> Object:
    # Without its uid, the pod would be made anew, free to go, if somebody deleted it just now.
    return {**item, "metadata": {**item["metadata"], "uid": pod.reference.uid}}
