"""Where the next pods of lost stages go while the others stay, and spares: among the nodes as they are now."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime

from pipelinejob.base import names
from pipelinejob.base.errors import SpecError
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.reported.sparing import Spare
from pipelinejob_operator.admission.capacity import Free, identity
from pipelinejob_operator.admission.line.queueing import is_in_line
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.pods.eligibility import unusable
from pipelinejob_operator.admission.pods.fitting import takers
from pipelinejob_operator.admission.pods.substitute import Place, nearest
from pipelinejob_operator.admission.refusals import why_left_out
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns.failing.failures import refused_nodes
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import kind_of_stage
from pipelinejob_operator.objects.making.spares import like_stage, may_become

NO_ROOM = "no node has room for it now"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What a place is looked for among."""

    nodes: Sequence[Object]
    topology: Topology
    free: Free  # for the job, as if it held nothing


def find_places(
    lost: Sequence[Rank],
    avoided: AbstractSet[str],
    *,
    observed: Observed,
    room: Room,
    admitted: AdmittedPods,
    now: datetime,
) -> dict[Rank, Place]:
    """Find a node for the next pod of each of these ranks, lost or new; one for which there is none is left out.

    A spare that answers takes the place of a lost one at once. Two that are lost at once do not
    get the room of one. Nodes that are `avoided` are taken only if there are no others in the
    cluster, whatever room they have.
    """
    job, spec = observed.job, observed.job.spec
    assert spec is not None, "only readable jobs have stages to lose"
    around = _look_around(observed, room, avoided, now)
    if around is None:
        return {}
    stay = [*_standing(job, admitted, but=lost), *_standing_spares(job, admitted)]
    warm = _warm(observed, around)
    found: dict[Rank, Place] = {}
    for rank in lost:
        near = list(_near(rank, observed, spec, found))
        place = _of_spare(rank, warm, near, around, spec)
        if place is None:
            others = room.neighbours(_all_but(job.uid, job.status.attempt, rank))
            pod = admitted.of_rank(job, rank).pod
            takes = takers(pod, around.nodes, around.free, stay, others)
            place = nearest(takes, around.topology, near, spec.topology.pipeline)
            stay += [] if place is None else [_at(place.node, pod)]
        if place is not None:
            found[rank] = place
    return found


def find_spare_places(
    numbers: Sequence[int], *, observed: Observed, room: Room, admitted: AdmittedPods, now: datetime
) -> Mapping[int, Place] | str:
    """Find a node for each of these spares, beside all that stands; say why, where there is none for any.

    A spare asks for room in the line's order, by its job's priority and age. It stands where no
    stage of its job does, if it can, near the stages of a replica: spares are shared out among the
    replicas.
    """
    job, spec = observed.job, observed.job.spec
    assert spec is not None, "only readable jobs keep spares"
    around = _look_around(observed, room, frozenset(), now)
    if around is None:
        return "the topology that the job names is gone"
    order, first = room.order, next((each for each in room.waiting if is_in_line(each)), None)
    if first is not None and order.rank(first) < order.rank(job):
        return f"{first.key}, which {order.why_ahead(first, job)}, waits for room itself"
    stay = [*_standing(job, admitted), *_standing_spares(job, admitted, but=numbers)]
    own = {each.node for each in job.status.stages}
    pod, found = _spare_pod(job, spec, admitted), dict[int, Place]()
    for number in numbers:
        others = room.neighbours(_all_but(job.uid, job.status.attempt, Rank.spare(number)))
        takes = takers(pod, around.nodes, around.free, stay, others)
        apart = [name for name in takes if name not in own]
        near = _of_replica(number % spec.parallelism.data, job)
        place = nearest(apart, around.topology, near, spec.topology.pipeline)
        place = place or nearest(takes, around.topology, near, spec.topology.pipeline)
        if place is not None:
            found[number] = place
            stay.append(_at(place.node, pod))
    return found or NO_ROOM


def _look_around(observed: Observed, room: Room, avoided: AbstractSet[str], now: datetime) -> _Around | None:
    job, spec = observed.job, observed.job.spec
    assert spec is not None, "only readable jobs look for places"
    room.refresh()
    left_out = {*why_left_out(job.status, now), *refused_nodes(observed.current.values()), *observed.silent_nodes}
    if not {node["metadata"]["name"] for node in room.nodes} <= avoided:
        left_out |= avoided
    nodes = [node for node in room.nodes if node["metadata"]["name"] not in left_out]
    try:
        infos = [NodeInfo(name=n["metadata"]["name"], labels=n["metadata"].get("labels") or {}) for n in room.nodes]
        topology = Topology.from_spec(spec.topology, infos, room.profiles)
    except SpecError:  # of a profile that is gone since
        return None
    free = room.free_without(job.uid, (node["metadata"]["name"] for node in nodes))
    return _Around(nodes=nodes, topology=topology, free=free)


def _standing(job: Job, admitted: AdmittedPods, *, but: Sequence[Rank] = ()) -> Iterator[Object]:
    """Return the pods of ranks by where they are to stand: another that was lost before may not be bound yet."""
    for each in job.status.stages:
        rank = Rank(each.replica, each.stage)
        if rank not in but:
            yield _at(each.node or "", admitted.of_rank(job, rank).pod)


def _standing_spares(job: Job, admitted: AdmittedPods, *, but: Sequence[int] = ()) -> Iterator[Object]:
    for each in _spares(job):
        if each.number not in but and job.spec is not None:
            yield _at(each.node, _spare_pod(job, job.spec, admitted))


def _spares(job: Job) -> tuple[Spare, ...]:
    return job.status.recovery.spares if job.status.recovery else ()


def _spare_pod(job: Job, spec: PipelineJobSpec, admitted: AdmittedPods) -> Object:
    pod = admitted.of(job, kind_of_stage(spec, like_stage(spec))).pod
    labels = {key: value for key, value in (pod["metadata"].get("labels") or {}).items() if key not in _OF_A_RANK}
    return {**pod, "metadata": {**pod["metadata"], "labels": labels}}


_OF_A_RANK = frozenset({names.LABEL_STAGE, names.LABEL_REPLICA})


def _warm(observed: Observed, around: _Around) -> dict[int, str]:
    """Return the spares that answer and may be taken, with the nodes they stand on."""
    open_nodes = {node["metadata"]["name"] for node in around.nodes if unusable(node) is None}
    answering = {each.stage for each in observed.spares if each.attempt == observed.job.status.attempt}
    pods = ((each, observed.current.get(Rank.spare(each.number))) for each in _spares(observed.job))
    return {
        each.number: each.node
        for each, pod in pods
        if pod is not None
        and each.number in answering
        and each.node in open_nodes
        and not pod.is_terminating
        and pod.outcome is None
    }


def _of_spare(
    rank: Rank, warm: dict[int, str], near: Sequence[tuple[str, ...]], around: _Around, spec: PipelineJobSpec
) -> Place | None:
    """Take the nearest spare that may become the rank off those that are warm."""
    if not warm or not may_become(spec, rank.stage):
        return None
    place = nearest(set(warm.values()), around.topology, near, spec.topology.pipeline)
    if place is None:
        return None
    number = min(each for each, node in warm.items() if node == place.node)
    del warm[number]
    return replace(place, spare=number)


def _at(node: str, pod: Object) -> Object:
    return {**pod, "spec": {**pod["spec"], "nodeName": node}}


def _all_but(uid: str, attempt: int, rank: Rank) -> Callable[[Object], bool]:
    return lambda pod: identity(pod) != (uid, attempt, rank)


def _near(
    rank: Rank, observed: Observed, spec: PipelineJobSpec, found: Mapping[Rank, Place]
) -> Iterator[tuple[str, ...]]:
    """Return where the rank stood, and where those stand, or are about to, that it talks to in its replica."""
    paths: Mapping[Rank, tuple[str, ...]] = {
        Rank(each.replica, each.stage): tuple((each.path or each.node or "").split("/"))
        for each in observed.job.status.stages
    } | {each: place.path for each, place in found.items()}
    num_stages = spec.parallelism.pipeline or 1
    for stage in (rank.stage, rank.stage - 1, rank.stage + 1):
        beside = Rank(rank.replica, stage % num_stages)
        if beside in paths:
            yield paths[beside]


def _of_replica(replica: int, job: Job) -> list[tuple[str, ...]]:
    """Return where the first stages of a replica stand."""
    own: Iterable[str] = ((each.path or each.node or "") for each in job.status.stages if each.replica == replica)
    return [tuple(path.split("/")) for path in dict.fromkeys(own)][:_MOST_NEAR]


_MOST_NEAR = 8  # stages that a spare is near to: more tell little, and cost as much again
