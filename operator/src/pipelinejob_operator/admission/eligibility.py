"""Which nodes a pod may stand on at all, by its own wishes and the nodes' taints: what kube-scheduler would filter by.

Only what can be read from pod and node; volumes and claims stay the scheduler's business, and `gangTimeout`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelinejob_operator.cluster import Object

# Kubernetes adds these by itself, and takes them away; a pod that tolerates them for seconds must not start there.
_TRANSIENT = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def unusable(node: Object) -> str | None:
    """Say why no pod may go to the node, None if one may."""
    if not is_node_ready(node):
        return "is not ready"
    if node.get("spec", {}).get("unschedulable"):
        return "is cordoned"
    return None


def may_stand_on(pod: Object, node: Object) -> bool:
    """Say whether the pod's own wishes and the node's taints let it be bound there."""
    spec = pod["spec"]
    return (
        all(_tolerates(spec.get("tolerations", ()), taint) for taint in node.get("spec", {}).get("taints") or ())
        and _has_labels(node, spec.get("nodeSelector") or {})
        and _matches_affinity(node, spec.get("affinity") or {})
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


def _has_labels(node: Object, wanted: Mapping[str, str]) -> bool:
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in wanted.items())


def _matches_affinity(node: Object, affinity: Mapping[str, Any]) -> bool:
    required = (affinity.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(_matches_term(node, term) for term in required["nodeSelectorTerms"])


def _matches_term(node: Object, term: Mapping[str, Any]) -> bool:
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    expressions = term.get("matchExpressions") or ()
    names = term.get("matchFields") or ()
    if not expressions and not names:
        return False  # an empty term matches nothing
    return all(_matches(labels, each) for each in expressions) and all(_matches(fields, each) for each in names)


def _matches(labels: Mapping[str, str], requirement: Mapping[str, Any]) -> bool:  # noqa: PLR0911  # one case an operator
    value = labels.get(requirement["key"])
    wanted: Sequence[str] = requirement.get("values") or ()
    match requirement["operator"]:
        case "In":
            return value in wanted
        case "NotIn":
            return value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and value.isdigit() and int(value) > int(wanted[0])
        case "Lt":
            return value is not None and value.isdigit() and int(value) < int(wanted[0])
        case _:
            return False


def is_node_ready(node: Object) -> bool:
    """Say whether the node's kubelet vouches for it."""
    conditions = node.get("status", {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
