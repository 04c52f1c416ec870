"""Whether a gang's pods, as they were admitted, still fit the nodes that were chosen for them."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from pipelinejob.base import names
from pipelinejob.base.quantities import Resources
from pipelinejob.placement.shortfall import amounts
from pipelinejob_operator.admission.pods.eligibility import may_stand_on, unusable
from pipelinejob_operator.admission.pods.neighbours import Neighbours, barred
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Rank
from pipelinejob_operator.objects.requests import is_one_a_node, pod_requests

_OF_A_RANK = frozenset({names.LABEL_STAGE, names.LABEL_REPLICA})


def misfits(
    gang: Mapping[Rank, tuple[Object, str]],
    nodes: Sequence[Object],
    free: Mapping[str, Resources],
    neighbours: Neighbours,
) -> list[str]:
    """Say of each rank whose pod does not fit its node why not.

    `gang` gives each rank's pod and node, `free` what is left for this gang.
    """
    by_name = {node["metadata"]["name"]: node for node in nodes}
    left = {name: dict(resources) for name, resources in free.items()}
    kept_away = _kept_away([pod for pod, _ in gang.values()], nodes, neighbours)
    said = []
    for rank, (pod, name) in sorted(gang.items()):
        node, requests = by_name.get(name), pod_requests(pod)
        why = "it is gone" if node is None else _why_not(pod, node) or _lacking(requests, left[name])
        if why is None and name in kept_away[_rules(pod)]:
            why = "pods there keep it away, by their affinity or by its own"
        if why is not None:
            said.append(f"{rank} does not fit node {name}: {why}")
        elif node is not None:
            _take(left[name], requests)
    return said


def takers(
    pod: Object,
    nodes: Sequence[Object],
    free: Mapping[str, Resources],
    others: Iterable[Object],
    neighbours: Neighbours,
) -> list[str]:
    """Name the nodes that would take one pod of a gang now, beside the `others` of it that stay where they are.

    `free` is what is left for the gang; a node that it does not name takes none.
    """
    left = {name: dict(resources) for name, resources in free.items()}
    for each in others:
        if (where := each["spec"].get("nodeName")) in left:
            _take(left[where], pod_requests(each))
    kept_away, requests = barred(pod, nodes, neighbours), pod_requests(pod)

    def takes(node: Object, name: str) -> bool:
        is_open = name in left and name not in kept_away and unusable(node) is None and may_stand_on(pod, node)
        return is_open and _lacking(requests, left[name]) is None

    return [name for node in nodes if takes(node, name := node["metadata"]["name"])]


def _kept_away(pods: Iterable[Object], nodes: Sequence[Object], neighbours: Neighbours) -> dict[str, frozenset[str]]:
    """Return the nodes that pods are kept from, for all that have the same rules and labels but for their rank."""
    return {rules: barred(pod, nodes, neighbours) for rules, pod in {_rules(pod): pod for pod in pods}.items()}


def _rules(pod: Object) -> str:
    labels = pod["metadata"].get("labels") or {}
    like = sorted((key, value) for key, value in labels.items() if key not in _OF_A_RANK)
    return repr((pod["spec"].get("affinity"), like))


def _why_not(pod: Object, node: Object) -> str | None:
    if may_stand_on(pod, node):
        return None
    return "its node selector, affinity or tolerations do not go with the node's labels and taints"


def _lacking(requests: Resources, left: Resources) -> str | None:
    lacking = {name: amount for name, amount in requests.items() if amount > _left(left, name)}
    if not lacking:
        return None
    has = {name: max(_left(left, name), Fraction(0)) for name in lacking}
    return f"it asks for {amounts(lacking)}, and {amounts(has)} is free there"


def _left(left: Resources, name: str) -> Fraction:
    whole = Fraction(1) if is_one_a_node(name) else Fraction(10**6) if name == "pods" else Fraction(0)
    return left.get(name, whole)


def _take(left: dict[str, Fraction], requests: Resources) -> None:
    for name, amount in requests.items():
        left[name] = _left(left, name) - amount
