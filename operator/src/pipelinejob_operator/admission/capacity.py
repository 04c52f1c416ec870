"""What every node has left: what it can give, less what all pods on it take, less what other jobs were promised."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from pipelinejob.base import names
from pipelinejob.base.quantities import Resources, add, resources, subtract
from pipelinejob.contract.plan import Placement
from pipelinejob.spec.reported.resizing import JoiningRank
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import kind_of_stage
from pipelinejob_operator.objects.making.spares import like_stage
from pipelinejob_operator.objects.pods import is_unused_spare
from pipelinejob_operator.objects.requests import is_one_a_node, pod_requests

Free = Mapping[str, Resources]  # by the names of nodes


class Claim(NamedTuple):
    """Resources of a node that a pod takes, or was promised."""

    node: str
    requests: Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The nodes an attempt of a job was given, until its own status shows it."""

    uid: str
    attempt: int
    generation: int  # of the spec that it was made for
    claims: Mapping[Rank, Claim] = field(default_factory=dict)

    def is_settled_by(self, job: Job) -> bool:
        """Tell whether the job's status shows the promise by now, or never will."""
        if job.generation > self.generation:  # it was written before the spec changed, and is seen, or never
            return True
        is_same_attempt = job.status.attempt == self.attempt
        return job.is_finished or job.status.attempt > self.attempt or (is_same_attempt and job.is_placed)


def claim(pod: Object) -> Claim | None:
    """Say what a pod takes of which node: the one that it is bound to, pinned to, or about to get; None if of none."""
    if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return None
    spec = pod.get("spec", {})
    node = spec.get("nodeName") or _pinned_node(spec) or pod.get("status", {}).get("nominatedNodeName")
    return Claim(node, pod_requests(pod)) if node else None


def free_room(
    nodes: Sequence[Object], pods: Iterable[Object], promises: Iterable[Promise]
) -> dict[str, dict[str, Fraction]]:
    """Return what is left on every node."""
    taken: dict[str, list[Resources]] = {}
    claiming: set[tuple[str, int, Rank]] = set()
    for pod in pods:
        claimed = claim(pod)
        if claimed is not None:
            taken.setdefault(claimed.node, []).append(claimed.requests)
            claiming.add(identity(pod))
    for promise in promises:
        for rank, promised in promise.claims.items():
            if (promise.uid, promise.attempt, rank) not in claiming:
                taken.setdefault(promised.node, []).append(promised.requests)
    return {
        node["metadata"]["name"]: what_is_left(allocatable(node), add(taken.get(node["metadata"]["name"], ())))
        for node in nodes
    }


def what_is_left(whole: Resources, taken: Resources) -> dict[str, Fraction]:
    """Return what a node has left; of what each node has one of, though it does not say so, it has one."""
    return subtract({**{name: Fraction(1) for name in taken if is_one_a_node(name)}, **whole}, taken)


def standing_room(nodes: Sequence[Object], pods: Iterable[Object]) -> dict[str, dict[str, Fraction]]:
    """Return what is left when all work is done and only what belongs to the node stays: daemons and static pods."""
    return free_room(nodes, (pod for pod in pods if belongs_to_node(pod)), ())


def allocatable(node: Object) -> dict[str, Fraction]:
    """Return what a node can give to pods."""
    return resources(node.get("status", {}).get("allocatable"))


def promise_of(job: Job, admitted: AdmittedPods) -> Promise:
    """Read what a job was promised from its status."""
    spec = job.spec
    if spec is None or job.is_finished or not job.is_placed:
        return Promise(uid=job.uid, attempt=job.status.attempt, generation=job.generation)
    resizing = job.status.recovery.resizing if job.status.recovery else None
    ranks: tuple[StageStatus | JoiningRank, ...] = (*job.status.stages, *(resizing.joining if resizing else ()))
    kinds = {kind_of_stage(spec, each.stage) for each in ranks}
    asked = {kind: pod_requests(admitted.of(job, kind).pod) for kind in kinds}
    claims = {
        Rank(each.replica, each.stage): Claim(each.node or "", asked[kind_of_stage(spec, each.stage)]) for each in ranks
    }
    spares = job.status.recovery.spares if job.status.recovery else ()
    if spares:
        of_spare = pod_requests(admitted.of(job, kind_of_stage(spec, like_stage(spec))).pod)
        claims |= {Rank.spare(each.number): Claim(each.node, of_spare) for each in spares}
    return Promise(uid=job.uid, attempt=job.status.attempt, generation=job.generation, claims=claims)


def claims_of(job: Job, placement: Placement, admitted: AdmittedPods) -> dict[Rank, Claim]:
    """What the ranks of a job take where they are placed."""
    assert job.spec is not None, "only readable jobs are placed"
    spec = job.spec
    asked = {
        kind: pod_requests(admitted.of(job, kind).pod) for kind in {kind_of_stage(spec, r.stage) for r in job.ranks}
    }
    return {
        Rank(each.replica, each.stage): Claim(each.node, asked[kind_of_stage(spec, each.stage)])
        for each in placement.assignments
    }


def has_room(free: Mapping[str, Resources], claims: Iterable[Claim]) -> bool:
    """Whether all of these fit in what is free."""
    wanted = list(claims)
    if not all(each.node in free for each in wanted):
        return False
    left = minus(free, wanted)
    return all(amount >= 0 for each in wanted for name, amount in left[each.node].items() if name in each.requests)


def plus(free: Mapping[str, Resources], claims: Iterable[Claim]) -> dict[str, Resources]:
    """Return what is left once these claims are given back."""
    return _changed(free, claims, operator.add)


def minus(free: Mapping[str, Resources], claims: Iterable[Claim]) -> dict[str, Resources]:
    """Return what is left for those who mind these claims; below zero where there is less than is claimed."""
    return _changed(free, claims, operator.sub)


def _changed(
    free: Mapping[str, Resources], claims: Iterable[Claim], by: Callable[[Fraction, Fraction], Fraction]
) -> dict[str, Resources]:
    changed = dict(free)
    for node, requests in claims:
        if node in changed:
            left = changed[node]
            known = {name: left.get(name, Fraction(1)) for name in requests if name in left or is_one_a_node(name)}
            changed[node] = {**left, **{name: by(amount, requests[name]) for name, amount in known.items()}}
    return changed


def _pinned_node(spec: Mapping[str, Any]) -> str | None:
    if any(gate["name"] == names.GATE_GANG for gate in spec.get("schedulingGates") or ()):
        return None
    required = (
        spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    for term in required.get("nodeSelectorTerms") or ():
        for each in term.get("matchFields") or ():
            if each.get("key") == "metadata.name" and each.get("operator") == "In" and len(each["values"]) == 1:
                return str(each["values"][0])
    return None


def identity(pod: Object) -> tuple[str, int, Rank]:
    """Return whose pod this is: the uid of its controller, and the attempt and rank where it is a stage."""
    metadata = pod["metadata"]
    labels = metadata.get("labels", {})
    owners = metadata.get("ownerReferences") or ()
    uid = next((owner["uid"] for owner in owners if owner.get("controller")), "")
    try:
        rank = (
            Rank.spare(int(labels[names.LABEL_SPARE]))
            if is_unused_spare(labels)
            else Rank(int(labels[names.LABEL_REPLICA]), int(labels[names.LABEL_STAGE]))
        )
        return (uid, int(labels[names.LABEL_ATTEMPT]), rank)
    except (KeyError, ValueError):
        return (uid, -1, Rank(-1, -1))


def is_stage(pod: Object) -> bool:
    """Tell whether the pod is a stage of some PipelineJob."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("kind") == names.KIND for owner in owners)


def belongs_to_node(pod: Object) -> bool:
    """Tell whether the pod stays as long as its node does: a daemon, or a static pod."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("kind") in {"DaemonSet", "Node"} for owner in owners)
