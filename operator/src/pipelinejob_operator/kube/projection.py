"""What is kept of pods and nodes in memory, and which of their changes matter.

A cluster's every pod counts against its node's capacity, so all are watched; of those that are not ours only what takes
capacity is kept, a tenth of the object. Of a node, images and heartbeats go: they change often and decide nothing.
"""

from collections.abc import Mapping
from typing import Any

from pipelinejob import names
from pipelinejob_operator.cluster import Key, Object
from pipelinejob_operator.kube.informer import without_managed_fields

_FINISHED = frozenset({"Succeeded", "Failed"})
_CONTAINER_FIELDS = ("name", "resources", "restartPolicy")
_POD_SPEC_FIELDS = ("nodeName", "overhead", "resources", "priority")
_CONDITION_FIELDS = ("type", "status", "reason")


def pod(item: dict[str, Any]) -> dict[str, Any]:
    """Keep all of a pod of ours, and of another what takes capacity."""
    if names.LABEL_JOB in (item["metadata"].get("labels") or {}):
        return without_managed_fields(item)
    spec = item.get("spec", {})
    kept_spec = _pick(spec, _POD_SPEC_FIELDS)
    for field in ("containers", "initContainers"):
        if spec.get(field):
            kept_spec[field] = [_pick(container, _CONTAINER_FIELDS) for container in spec[field]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _pick(
            item["metadata"], ("name", "namespace", "uid", "resourceVersion", "deletionTimestamp", "ownerReferences")
        ),
        "spec": kept_spec,
        "status": _pick(item.get("status", {}), ("phase",)),
    }


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
    """Keep that a config map or a service of ours stands, not what it holds."""
    return {
        "apiVersion": "v1",
        "kind": item["kind"],
        "metadata": _pick(
            item["metadata"], ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences")
        ),
    }


def matters(old: Object | None, new: Object | None) -> bool:
    """Tell whether what is kept of an object differs in more than its version."""
    if old is None or new is None:
        return True
    return _without_version(old) != _without_version(new)


def takes_capacity(item: Object) -> bool:
    """Tell whether a pod holds room on a node: bound and not finished, even if it is being deleted."""
    return bool(item["spec"].get("nodeName")) and item.get("status", {}).get("phase") not in _FINISHED


def is_ours(item: Object) -> bool:
    """Tell whether a pod is a stage of some PipelineJob."""
    return owner(item) is not None


def owner(item: Object) -> tuple[Key, str] | None:
    """Give the PipelineJob that controls an object: its key and uid."""
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
    """Give the jobs that this one asked to make way: they deserve a pass at once."""
    return [each["name"] for each in (job.get("status") or {}).get("preempts") or ()]


def _condition(job: Object, wanted: str) -> str | None:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((condition["status"] for condition in conditions if condition["type"] == wanted), None)


def _pick(item: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: item[field] for field in fields if field in item}


def _without_version(item: Object) -> dict[str, Any]:
    metadata = {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}
    return {**item, "metadata": metadata}
