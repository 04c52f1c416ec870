"""Where the next pods of lost stages go while the others stay: looked for among the nodes as they are now."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime

from pipelinejob.base.errors import SpecError
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.admission.capacity import identity
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.pods.fitting import takers
from pipelinejob_operator.admission.pods.substitute import Place, nearest
from pipelinejob_operator.admission.refusals import why_left_out
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns.failing.failures import refused_nodes
from pipelinejob_operator.objects.job import Rank


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

    Two that are lost at once do not get the room of one. Nodes that are `avoided` are taken only if there are no others
    in the cluster, whatever room they have.
    """
    job, spec = observed.job, observed.job.spec
    assert spec is not None, "only readable jobs have stages to lose"
    room.refresh()
    left_out = {*why_left_out(job.status, now), *refused_nodes(observed.current.values()), *observed.silent_nodes}
    if not {node["metadata"]["name"] for node in room.nodes} <= avoided:
        left_out |= avoided
    nodes = [node for node in room.nodes if node["metadata"]["name"] not in left_out]
    try:
        infos = [NodeInfo(name=n["metadata"]["name"], labels=n["metadata"].get("labels") or {}) for n in room.nodes]
        topology = Topology.from_spec(spec.topology, infos, room.profiles)
    except SpecError:  # of a profile that is gone since
        return {}
    free = room.free_without(job.uid, (node["metadata"]["name"] for node in nodes))
    # By where they are to stand: another that was lost before may not be bound yet.
    stay = [
        _at(each.node or "", admitted.of_rank(job, rank).pod)
        for each in job.status.stages
        if (rank := Rank(each.replica, each.stage)) not in lost
    ]
    found: dict[Rank, Place] = {}
    for rank in lost:
        others = room.neighbours(_all_but(job.uid, job.status.attempt, rank))
        pod = admitted.of_rank(job, rank).pod
        names = takers(pod, nodes, free, stay, others)
        place = nearest(names, topology, list(_near(rank, observed, spec, found)), spec.topology.pipeline)
        if place is not None:
            found[rank] = place
            stay.append(_at(place.node, pod))
    return found


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
