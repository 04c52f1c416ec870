"""Which nodes a pod may stand on at all, by its own wishes and the nodes' taints: what kube-scheduler would filter by.

Only what can be read from pod and node; other pods are looked at in `neighbours.py`, volumes in
`admitted.py`. What is known to the scheduler alone (device claims, volumes still to be made) is
learnt when a node refuses (`refusals.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.selectors import has_labels, selects_node

# Kubernetes adds these by itself, and takes them away; a pod that tolerates them for seconds must
# not start there.
_TRANSIENT = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def unusable(node: Object) -> str | None:
    """Say why no pod may go to the node, None if one may."""
    if not is_node_ready(node):
        return "is not ready"
    if node.get("spec", {}).get("unschedulable"):
        return "is cordoned"
    return None


def may_stand_on(pod: Object, node: Object) -> bool:
    """Tell whether the pod's own wishes and the node's taints let it be bound there."""
    spec = pod["spec"]
    return (
        all(_tolerates(spec.get("tolerations", ()), taint) for taint in node.get("spec", {}).get("taints") or ())
        and has_labels(node["metadata"].get("labels") or {}, spec.get("nodeSelector") or {})
        and selects_node(_required(spec), node)
    )


def _tolerates(tolerations: Sequence[Mapping[str, Any]], taint: Mapping[str, Any]) -> bool:
    if taint.get("effect") == "PreferNoSchedule":
        return True
    if taint["key"] in _TRANSIENT:
        return False
    return any(_covers(toleration, taint) for toleration in tolerations)


def _covers(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in {None, "", taint.get("effect")}:
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint["key"]:
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == (taint.get("value") or "")


def _required(spec: Object) -> Mapping[str, Any] | None:
    affinity: Mapping[str, Any] = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    return affinity.get("requiredDuringSchedulingIgnoredDuringExecution")


def is_node_ready(node: Object) -> bool:
    """Tell whether the node's kubelet vouches for it."""
    conditions = node.get("status", {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
