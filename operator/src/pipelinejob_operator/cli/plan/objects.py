"""What the operator would create for a planned job, as Kubernetes objects."""

from collections.abc import Mapping
from typing import Any

from pipelinejob.plan import Plan
from pipelinejob_operator.cli.manifests import GivenJob
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, read_job
from pipelinejob_operator.objects.manifests import headless_service, plan_config_map, stage_pod

_UID = "uid-of-the-pipelinejob"  # only a cluster knows it


def as_stored(job: GivenJob) -> Job:
    """Read a job as if a cluster held it."""
    return read_job({**job.stored, "metadata": {"uid": _UID, **job.stored["metadata"]}})


def objects(job: GivenJob, made: Plan, settings: ControllerSettings) -> list[Mapping[str, Any]]:
    """Give what the operator would create, in its order; the job's uid is only known to a cluster."""
    read = as_stored(job)
    nodes = {(each.replica, each.stage): each.node for each in made.placement.assignments} if made.placement else {}
    pods = [
        stage_pod(read, job.spec, rank, attempt=1, settings=settings, node=nodes.get((rank.replica, rank.stage)))
        for rank in (Rank(r, s) for r in range(job.spec.parallelism.data) for s in range(job.spec.parallelism.pipeline))
    ]
    return [plan_config_map(read, made, attempt=1), headless_service(read), *pods]
