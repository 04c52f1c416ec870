"""What every node has left: what it can give, less what all pods on it take, less what other jobs were promised."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from pipelinejob import names
from pipelinejob.quantities import Resources, add, resources, subtract
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.manifests import kind_of_stage, kinds_of_stages, stage_pod
from pipelinejob_operator.objects.pods import pod_requests


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


def claim(pod: Object) -> Claim | None:
    """Say what a pod takes of which node, the one it is bound or pinned to; None if it takes nothing."""
    if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return None
    spec = pod.get("spec", {})
    node = spec.get("nodeName") or _pinned_node(spec)
    return Claim(node, pod_requests(pod)) if node else None


def free_room(
    nodes: Sequence[Object], pods: Iterable[Object], promises: Iterable[Promise]
) -> dict[str, dict[str, Fraction]]:
    """Give what is left on every node."""
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
        node["metadata"]["name"]: subtract(allocatable(node), add(taken.get(node["metadata"]["name"], ())))
        for node in nodes
    }


def standing_room(nodes: Sequence[Object], pods: Iterable[Object]) -> dict[str, dict[str, Fraction]]:
    """Give what is left when all work is done and only what belongs to the node stays: daemons and static pods."""
    return free_room(nodes, (pod for pod in pods if belongs_to_node(pod)), ())


def allocatable(node: Object) -> dict[str, Fraction]:
    """Give what a node can give to pods."""
    return resources(node.get("status", {}).get("allocatable"))


def promise_of(job: Job, settings: ControllerSettings) -> Promise:
    """Read what a job was promised from its status."""
    spec = job.spec
    if spec is None or job.is_finished or not job.is_placed:
        return Promise(uid=job.uid, attempt=job.status.attempt, generation=job.generation)
    asked = {kind: rank_requests(job, Rank(0, kind), settings) for kind in kinds_of_stages(spec)}
    claims = {
        Rank(each.replica, each.stage): Claim(each.node or "", asked[kind_of_stage(spec, each.stage)])
        for each in job.status.stages
    }
    return Promise(uid=job.uid, attempt=job.status.attempt, generation=job.generation, claims=claims)


def rank_requests(job: Job, rank: Rank, settings: ControllerSettings) -> dict[str, Fraction]:
    """Give what one rank's pod will ask for."""
    assert job.spec is not None, "only readable jobs are placed"
    return pod_requests(stage_pod(job, job.spec, rank, attempt=0, settings=settings))


def plus(free: Mapping[str, Resources], claims: Iterable[Claim]) -> dict[str, Resources]:
    """Give what is left once these claims are given back."""
    return _changed(free, claims, operator.add)


def minus(free: Mapping[str, Resources], claims: Iterable[Claim]) -> dict[str, Resources]:
    """Give what is left for those who mind these claims; below zero where there is less than is claimed."""
    return _changed(free, claims, operator.sub)


def _changed(
    free: Mapping[str, Resources], claims: Iterable[Claim], by: Callable[[Fraction, Fraction], Fraction]
) -> dict[str, Resources]:
    changed = dict(free)
    for node, requests in claims:
        if node in changed:
            left = changed[node]
            changed[node] = {**left, **{name: by(left[name], some) for name, some in requests.items() if name in left}}
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
    """Give whose pod this is: the uid of its controller, and the attempt and rank where it is a stage."""
    metadata = pod["metadata"]
    labels = metadata.get("labels", {})
    owners = metadata.get("ownerReferences") or ()
    uid = next((owner["uid"] for owner in owners if owner.get("controller")), "")
    try:
        rank = Rank(int(labels[names.LABEL_REPLICA]), int(labels[names.LABEL_STAGE]))
        return (uid, int(labels[names.LABEL_ATTEMPT]), rank)
    except (KeyError, ValueError):
        return (uid, -1, Rank(-1, -1))


def belongs_to_node(pod: Object) -> bool:
    """Say whether the pod stays as long as its node does: a daemon, or a static pod."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("kind") in {"DaemonSet", "Node"} for owner in owners)
