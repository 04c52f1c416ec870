"""What one pass sees: the job, its pods and the nodes at one moment, read once, parsed, and not looked at again."""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property

from pipelinejob.base import names
from pipelinejob.base.errors import SpecError
from pipelinejob.contract.progress import Progress
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.admission.line.priority import Priorities
from pipelinejob_operator.admission.line.quota import Quota, quota_of
from pipelinejob_operator.admission.pods.eligibility import is_node_ready
from pipelinejob_operator.admission.pods.substitute import Place
from pipelinejob_operator.cluster import Autoscaler, Cluster, Event, Object
from pipelinejob_operator.controller.observing.divided import Divided
from pipelinejob_operator.controller.observing.memo import StagePods
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.unnumbered import pod_names
from pipelinejob_operator.objects.ownership import Obstacle, obstacle
from pipelinejob_operator.objects.pods import Outcome, StagePod

PlanVersion = tuple[int, int]  # an attempt, and how often its gang went over to another number of replicas
MAX_QUESTIONS_AT_ONCE = 16
_MAX_HEARD = 8  # pods of a gang: what keeps it from being up is told by a few


def _nowhere(_: Sequence[Rank], __: AbstractSet[str]) -> dict[Rank, Place]:
    return {}


def _nowhere_for_spares(_: Sequence[int]) -> str:
    return "nobody has looked for room"


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One moment of one job."""

    job: Job
    secret: str  # drawn for this moment alone: what is made by it nobody else can guess
    errors: tuple[SpecError, ...] = ()
    pods: tuple[StagePod, ...] = ()  # of every attempt
    plan_version: PlanVersion | None = None  # of the config map that stands; None if there is none
    plan_uid: str | None = None  # its uid
    services: frozenset[str] = frozenset()  # by name
    in_the_way: tuple[Obstacle, ...] = ()  # what is another's under names that this job needs
    gone_nodes: frozenset[str] = frozenset()  # nodes of this job's pods that are no more
    silent_nodes: frozenset[str] = frozenset()  # those that are gone, or whose kubelet does not vouch for them now
    progress: tuple[Progress, ...] = ()  # what is to be written of it now
    accounts: tuple[Progress, ...] = ()  # of all that answer, where stages are replaced in place
    spares: tuple[Progress, ...] = ()  # of those that are kept warm and answer, also of one that has yet to be told
    said: Mapping[str, tuple[Event, ...]] = field(default_factory=dict)  # by the uid of a pod that is not up
    asker: Job | None = None  # of higher priority, for which this one is to make way
    autoscaler: Autoscaler | None = None  # None: the operator is not to ask for nodes
    quota: Quota | None = None  # None: the job names no queue of Kueue's
    stray_workload: Object | None = None  # of a job that names none any more
    # For the next pods of lost ranks; off these nodes, unless there are no others.
    places: Callable[[Sequence[Rank], AbstractSet[str]], Mapping[Rank, Place]] = _nowhere
    # For spares, by their numbers; or why there is nothing for them now.
    spare_places: Callable[[Sequence[int]], Mapping[int, Place] | str] = _nowhere_for_spares
    divided: Divided | None = None  # the layers, by what was measured, where a stage holds up the others
    misfits: tuple[str, ...] = ()  # of a gang that is not let go yet: which pods, as admitted, do not fit their nodes

    @property
    def may_be_placed(self) -> bool:
        """Tell whether only room is missing: Kueue, where it is asked, has admitted what the job asks for now."""
        return self.quota is None or (self.quota.is_admitted and not self.quota.is_stale)

    @cached_property
    def current(self) -> dict[Rank, StagePod]:
        """Return the pods of the present attempt, spares among them; not one whose place a spare has taken."""
        named = {Rank(each.replica, each.stage): each.pod for each in self.job.status.stages}
        own = (pod for pod in self.pods if pod.attempt == self.job.status.attempt)
        return {pod.rank: pod for pod in own if named.get(pod.rank, pod.name) == pod.name}

    @cached_property
    def of_gang(self) -> "Observed":
        """Return the same without what is said and seen of others than its ranks: of replicas that come, or that go."""
        ranks, attempt = frozenset(self.job.ranks), self.job.status.attempt
        return replace(
            self,
            pods=tuple(pod for pod in self.pods if pod.attempt != attempt or pod.rank in ranks),
            progress=tuple(each for each in self.progress if Rank(each.replica, each.stage) in ranks),
            accounts=tuple(each for each in self.accounts if Rank(each.replica, each.stage) in ranks),
        )

    @cached_property
    def is_gathered(self) -> bool:
        """Tell whether every pod of a placed gang stands, and none was let go."""
        job, current = self.job, self.current
        if not job.is_placed or job.is_finished or job.status.released_time is not None:
            return False
        return all(rank in current and not current[rank].is_terminating for rank in job.ranks)

    @property
    def lost_nodes(self) -> frozenset[str]:
        """Name the nodes whose stages are lost.

        A kubelet that restarts is silent for moments. Only together with a failed stage does
        silence mean loss, and not where a stage answers; if the node stays silent, the cluster
        evicts its pods, and that is seen.
        """
        if not any(pod.outcome is Outcome.FAILED for pod in self.current.values()):
            return self.gone_nodes
        answering = {pod.node for each in self.accounts if (pod := self.current.get(Rank(each.replica, each.stage)))}
        return self.gone_nodes | (self.silent_nodes - answering)

    @cached_property
    def older(self) -> tuple[StagePod, ...]:
        """Return the pods of attempts that were given up."""
        return tuple(pod for pod in self.pods if pod.attempt != self.job.status.attempt)


def observe(
    cluster: Cluster,
    job: Job,
    errors: Sequence[SpecError],
    settings: ControllerSettings,
    *,
    read: StagePods,
    asker: Job | None = None,
) -> Observed:
    """Read everything about a job, as it is stored, that a decision may need; all from caches.

    Decisions are pure, so what they need at random is drawn here, too.
    """
    kueue = cluster.kueue(job.key)
    job, quota = read_admitted(cluster, job, errors, settings)
    ranks = {stage.pod: Rank(stage.replica, stage.stage) for stage in job.status.stages}
    pods = read.read(job.key, cluster.pods(job.key), ranks)
    furniture = cluster.furniture(job.key)
    plans = [item["metadata"]["uid"] for item in furniture if item["kind"] == "ConfigMap"]
    nodes = {name: cluster.node(name) for name in _used(pods)}
    return Observed(
        job=job,
        secret=secrets.token_urlsafe(24),
        errors=tuple(errors),
        pods=pods,
        plan_version=plan_version(furniture),
        plan_uid=next(iter(plans), None),
        services=frozenset(item["metadata"]["name"] for item in furniture if item["kind"] == "Service"),
        in_the_way=_in_the_way(cluster, job, {pod.name for pod in pods}),
        gone_nodes=frozenset(name for name, node in nodes.items() if node is None),
        silent_nodes=frozenset(name for name, node in nodes.items() if node is None or not is_node_ready(node)),
        asker=asker if job.is_placed else None,
        autoscaler=cluster.autoscaler(job.key),
        quota=quota,
        stray_workload=kueue.workload if kueue and job.queue is None else None,
    )


def read_admitted(
    cluster: Cluster, job: Job, errors: Sequence[SpecError], settings: ControllerSettings
) -> tuple[Job, Quota | None]:
    """Read a job as its pods are made now, with what the flavors add that Kueue admitted it to; and that admission."""
    if job.spec is None or job.spec.is_open or errors or job.queue is None:
        return job, None
    priorities = Priorities.read(cluster.priority_classes())
    quota = quota_of(job, job.spec, cluster.kueue(job.key), priorities, settings)
    return (quota.laid_over(job) if quota else job), quota


async def ask_progress(
    cluster: Cluster, pods: Mapping[Rank, StagePod], *, only_ready: bool = True
) -> tuple[Progress, ...]:
    """Ask every ready trainer how far it is, or every one that runs."""
    limit = asyncio.Semaphore(MAX_QUESTIONS_AT_ONCE)

    async def ask(pod: StagePod) -> Progress | None:
        async with limit:
            return await cluster.progress(pod.raw)

    answers = await asyncio.gather(*(ask(pod) for pod in pods.values() if _is_asked(pod, only_ready)))
    return tuple(answer for answer in answers if answer is not None)


def _is_asked(pod: StagePod, only_ready: bool) -> bool:  # noqa: FBT001 # as its caller has it
    return pod.outcome is None and (pod.is_ready or (pod.has_started and not only_ready))


async def ask_events(cluster: Cluster, pods: Mapping[Rank, StagePod]) -> dict[str, tuple[Event, ...]]:
    """Ask what was told of the first bound pods that are not up, before all of those that have not begun."""
    waiting = [pod for pod in pods.values() if pod.node and pod.outcome is None and not pod.is_ready]
    first = sorted(waiting, key=lambda pod: (pod.has_started, pod.rank))[:_MAX_HEARD]
    heard = await asyncio.gather(*(cluster.pod_events(pod.raw) for pod in first))
    return {pod.reference.uid or "": tuple(events) for pod, events in zip(first, heard, strict=True)}


def _in_the_way(cluster: Cluster, job: Job, own: AbstractSet[str]) -> tuple[Obstacle, ...]:
    found = (cluster.pod_by_name(job.key.namespace, name) for name in pod_names(job) if name not in own)
    return tuple(_pod_obstacle(pod, job) for pod in found if pod is not None)


def _pod_obstacle(pod: Object, job: Job) -> Obstacle:
    lost = Obstacle(kind="Pod", name=pod["metadata"]["name"], owner="of this job, but without its labels")
    return obstacle(pod, uid=job.uid, name=job.key.name) or lost


def plan_version(furniture: Iterable[Object]) -> PlanVersion | None:
    """Return the attempt whose plan stands in the config map, and how often its gang was resized; None if none does."""
    config_map = next((item for item in furniture if item["kind"] == "ConfigMap"), None)
    labels = (config_map or {}).get("metadata", {}).get("labels", {})
    attempt, resizes = (labels.get(name, "") for name in (names.LABEL_ATTEMPT, names.LABEL_RESIZES))
    return (int(attempt), int(resizes) if resizes.isdecimal() else 0) if attempt.isdecimal() else None


def wanted_plan(status: PipelineJobStatus) -> PlanVersion:
    """Return the version of the plan that the config map is to hold."""
    return status.attempt, status.recovery.resizes if status.recovery else 0


def _used(pods: tuple[StagePod, ...]) -> frozenset[str]:
    return frozenset(pod.node for pod in pods if pod.node is not None)
