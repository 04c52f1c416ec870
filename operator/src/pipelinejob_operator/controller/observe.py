"""What one pass sees: the job, its pods and the nodes at one moment, read once, parsed, and not looked at again."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelinejob import names
from pipelinejob.errors import SpecError
from pipelinejob.progress import Progress
from pipelinejob_operator.admission.asking import asked_to_leave
from pipelinejob_operator.admission.eligibility import is_node_ready
from pipelinejob_operator.admission.priority import Priorities
from pipelinejob_operator.admission.quota import Quota, quota_of
from pipelinejob_operator.cluster import Cluster, Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, read_job
from pipelinejob_operator.objects.pods import StagePod, read_stage_pod
from pipelinejob_operator.objects.unnumbered import pod_names

MAX_QUESTIONS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One moment of one job."""

    job: Job
    errors: tuple[SpecError, ...] = ()
    pods: tuple[StagePod, ...] = ()  # of every attempt
    plan_attempt: int | None = None  # of the config map that stands; None if there is none
    has_service: bool = False
    in_the_way: tuple[str, ...] = ()  # pods of another owner under names that this job needs
    gone_nodes: frozenset[str] = frozenset()  # nodes of this job's pods that are no more
    silent_nodes: frozenset[str] = frozenset()  # those that are gone, or whose kubelet does not vouch for them now
    progress: tuple[Progress, ...] = ()
    asker: Job | None = None  # of higher priority, for which this one is to make way
    quota: Quota | None = None  # None: the job names no queue of Kueue's
    stray_workload: Object | None = None  # of a job that names none any more

    @property
    def may_be_placed(self) -> bool:
        """Say whether only room is missing: Kueue, where it is asked, has admitted what the job asks for now."""
        return self.quota is None or (self.quota.is_admitted and not self.quota.is_stale)

    @property
    def current(self) -> dict[Rank, StagePod]:
        """Give the pods of the present attempt."""
        return {pod.rank: pod for pod in self.pods if pod.attempt == self.job.status.attempt}

    @property
    def older(self) -> tuple[StagePod, ...]:
        """Give the pods of attempts that were given up."""
        return tuple(pod for pod in self.pods if pod.attempt != self.job.status.attempt)


def observe(cluster: Cluster, raw: Object, errors: Sequence[SpecError], settings: ControllerSettings) -> Observed:
    """Read everything about the job that a decision may need; all from caches."""
    kueue = cluster.kueue(read_job(raw).key)
    job, quota = read_admitted(cluster, raw, errors, settings)
    ranks = {stage.pod: Rank(stage.replica, stage.stage) for stage in job.status.stages}
    pods = tuple(pod for each in cluster.pods(job.key) if (pod := read_stage_pod(each, ranks)) is not None)
    furniture = {item["kind"]: item for item in cluster.furniture(job.key)}
    return Observed(
        job=job,
        errors=tuple(errors),
        pods=pods,
        plan_attempt=plan_attempt(furniture.values()),
        has_service="Service" in furniture,
        in_the_way=_in_the_way(cluster, job),
        gone_nodes=_used(pods) - {node["metadata"]["name"] for node in cluster.nodes()},
        silent_nodes=_used(pods) - {node["metadata"]["name"] for node in cluster.nodes() if is_node_ready(node)},
        asker=_asker(cluster, job) if job.is_placed else None,
        quota=quota,
        stray_workload=kueue.workload if kueue and job.queue is None else None,
    )


def read_admitted(
    cluster: Cluster, raw: Object, errors: Sequence[SpecError], settings: ControllerSettings
) -> tuple[Job, Quota | None]:
    """Read a job as its pods are made now, with what the flavors add that Kueue admitted it to; and that admission."""
    job = read_job(raw)
    if job.spec is None or job.spec.is_open or errors or job.queue is None:
        return job, None
    priorities = Priorities.read(cluster.priority_classes())
    quota = quota_of(job, job.spec, cluster.kueue(job.key), priorities, settings)
    return (quota.laid_over(job) if quota else job), quota


async def ask_progress(cluster: Cluster, pods: Mapping[Rank, StagePod]) -> tuple[Progress, ...]:
    """Ask every ready trainer how far it is."""
    limit = asyncio.Semaphore(MAX_QUESTIONS_AT_ONCE)

    async def ask(pod: StagePod) -> Progress | None:
        async with limit:
            return await cluster.progress(pod.raw)

    answers = await asyncio.gather(*(ask(pod) for pod in pods.values() if pod.is_ready and not pod.is_done))
    return tuple(answer for answer in answers if answer is not None)


def _in_the_way(cluster: Cluster, job: Job) -> tuple[str, ...]:
    # A namesake of a deleted job may leave pods behind for its grace. Server-side apply would write into them.
    needed = set(pod_names(job))
    return tuple(
        pod["metadata"]["name"]
        for pod in cluster.all_pods()
        if pod["metadata"]["namespace"] == job.key.namespace
        and pod["metadata"]["name"] in needed
        and not _is_owned(pod, job.uid)
    )


def _asker(cluster: Cluster, job: Job) -> Job | None:
    askers = [read_job(raw) for raw in cluster.jobs() if (raw.get("status") or {}).get("preempts")]
    if not askers:
        return None
    return asked_to_leave([job, *askers], Priorities.read(cluster.priority_classes())).get(job.uid)


def plan_attempt(furniture: Iterable[Object]) -> int | None:
    """Give the attempt whose plan stands in the config map; None if there is none."""
    config_map = next((item for item in furniture if item["kind"] == "ConfigMap"), None)
    label = (config_map or {}).get("metadata", {}).get("labels", {}).get(names.LABEL_ATTEMPT, "")
    return int(label) if label.isdecimal() else None


def _is_owned(pod: Object, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())


def _used(pods: tuple[StagePod, ...]) -> frozenset[str]:
    return frozenset(pod.node for pod in pods if pod.node is not None)
