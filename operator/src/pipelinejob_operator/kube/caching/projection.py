"""What is kept of jobs, pods and nodes in memory, and which of their changes matter.

A cluster's every pod counts against its node's capacity, so all are watched; of those that are not
ours only what takes capacity is kept, a tenth of the object. Of a node, images and heartbeats go:
they change often and decide nothing.
"""

from collections.abc import Mapping
from typing import Any

from pipelinejob.base import names
from pipelinejob_operator.cluster import Key, Object
from pipelinejob_operator.kube.caching.informer import without_managed_fields
from pipelinejob_operator.objects.making.chains import BUDGET

_FINISHED = frozenset({"Succeeded", "Failed"})
_CONTAINER_FIELDS = ("name", "resources", "restartPolicy")
_POD_SPEC_FIELDS = ("nodeName", "overhead", "resources", "priority")
_POD_METADATA_FIELDS = ("name", "namespace", "uid", "resourceVersion", "labels", "deletionTimestamp", "ownerReferences")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_KEPT_APART = "requiredDuringSchedulingIgnoredDuringExecution"
_CONDITION_FIELDS = ("type", "status", "reason")


def job(item: dict[str, Any]) -> dict[str, Any]:
    """Keep all of a job but bookkeeping, and kubectl's copy of the spec."""
    annotations = item["metadata"].get("annotations")
    if annotations:
        annotations.pop(_LAST_APPLIED, None)
    return without_managed_fields(item)


def pod(item: dict[str, Any]) -> dict[str, Any]:
    """Keep all of a pod of ours, and of another what takes capacity, or keeps ours away."""
    if names.LABEL_JOB in (item["metadata"].get("labels") or {}):
        return without_managed_fields(item)
    spec = item.get("spec", {})
    kept_spec = _pick(spec, _POD_SPEC_FIELDS)
    for field in ("containers", "initContainers"):
        if spec.get(field):
            kept_spec[field] = [_container(container) for container in spec[field]]
    apart = ((spec.get("affinity") or {}).get("podAntiAffinity") or {}).get(_KEPT_APART)
    if apart:
        kept_spec["affinity"] = {"podAntiAffinity": {_KEPT_APART: apart}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _pick(item["metadata"], _POD_METADATA_FIELDS),
        "spec": kept_spec,
        "status": {**_pick(item.get("status", {}), ("phase", "nominatedNodeName")), **_resizing(item)},
    }


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    ports = [_pick(each, ("hostPort", "protocol")) for each in container.get("ports") or () if each.get("hostPort")]
    return _pick(container, _CONTAINER_FIELDS) | ({"ports": ports} if ports else {})


def _resizing(item: Object) -> dict[str, Any]:
    """Keep what containers hold where that is not what they ask for: a resize in place that is not done."""
    kept: dict[str, Any] = {}
    for field, statuses in (("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")):
        asked = {each["name"]: (each.get("resources") or {}).get("requests") for each in item["spec"].get(field) or ()}
        differing = [
            _pick(each, ("name", "allocatedResources", "resources"))
            for each in item.get("status", {}).get(statuses) or ()
            if any(held and held != asked.get(each["name"]) for held in _held(each))
        ]
        if differing:
            kept[statuses] = differing
    return kept


def _held(status: Object) -> tuple[Any, Any]:
    return status.get("allocatedResources"), (status.get("resources") or {}).get("requests")


def node(item: dict[str, Any]) -> dict[str, Any]:
    """Keep what decides whether and where a stage may stand."""
    status = item.get("status", {})
    conditions = [_pick(condition, _CONDITION_FIELDS) for condition in status.get("conditions") or ()]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _pick(
            item["metadata"], ("name", "uid", "resourceVersion", "labels", "creationTimestamp", "deletionTimestamp")
        ),
        "spec": _pick(item.get("spec", {}), ("unschedulable", "taints")),
        "status": {**_pick(status, ("capacity", "allocatable")), "conditions": conditions},
    }


def furniture(item: dict[str, Any]) -> dict[str, Any]:
    """Keep that a config map, a service or a budget of ours stands, and of the last what it asks for."""
    metadata = _pick(item["metadata"], ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences"))
    kept = {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata}
    return kept | ({"spec": _pick(item["spec"], ("minAvailable",))} if item["kind"] == BUDGET else {})


def matters(old: Object | None, new: Object | None) -> bool:
    """Tell whether what is kept of an object differs in more than its version."""
    if old is None or new is None:
        return True
    return _without_version(old) != _without_version(new)


def takes_capacity(item: Object) -> bool:
    """Tell whether a pod holds room on a node, bound or about to be, and not finished, even if it is being deleted."""
    status = item.get("status", {})
    node = item["spec"].get("nodeName") or status.get("nominatedNodeName")
    return bool(node) and status.get("phase") not in _FINISHED


def is_ours(item: Object) -> bool:
    """Tell whether a pod is a stage of some PipelineJob."""
    return owner(item) is not None


def owner(item: Object) -> tuple[Key, str] | None:
    """Return the PipelineJob that controls an object: its key and uid."""
    for reference in item["metadata"].get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == names.KIND:
            return Key(item["metadata"]["namespace"], reference["name"]), reference["uid"]
    return None


def is_finished(job: Object) -> bool:
    """Tell whether a job has ended, one way or the other."""
    return _condition(job, "Succeeded") in {"True", "False"}


def waits_for_room(job: Object) -> bool:
    """Tell whether a job is after room on the nodes."""
    return not is_finished(job) and not job["spec"].get("suspend") and _condition(job, "Placed") != "True"


def asked(job: Object) -> list[str]:
    """Return the jobs that this one asked to make way: they deserve a pass at once."""
    return [each["name"] for each in (job.get("status") or {}).get("preempts") or ()]


def _condition(job: Object, wanted: str) -> str | None:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((condition["status"] for condition in conditions if condition["type"] == wanted), None)


def _pick(item: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: item[field] for field in fields if field in item}


def _without_version(item: Object) -> dict[str, Any]:
    metadata = {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}
    return {**item, "metadata": metadata}
