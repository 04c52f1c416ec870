"""Which nodes other pods keep a pod from: required pod affinity and anti-affinity, theirs as well as its own.

A namespaceSelector is read by the one label that every namespace has, its name; what else it asks
for only the scheduler knows, and a node that it refuses is left out afterwards.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.selectors import selects

_NAMESPACE_NAME = "kubernetes.io/metadata.name"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

Term = Mapping[str, Any]


def apart_terms(pod: Object) -> Sequence[Term]:
    """Return a pod's required anti-affinity."""
    return _terms(pod, "podAntiAffinity")


def together_terms(pod: Object) -> Sequence[Term]:
    """Return a pod's required affinity to other pods."""
    return _terms(pod, "podAffinity")


def means(term: Term, owner: Object, other: Object) -> bool:
    """Tell whether a term of one pod is about another."""
    return _is_of_its_namespaces(term, owner, other) and selects(
        term.get("labelSelector"), other["metadata"].get("labels") or {}
    )


def domain(node: Object, term: Term) -> str | None:
    """Return the domain of a node that a term means; None if the node is in none."""
    return (node["metadata"].get("labels") or {}).get(term["topologyKey"])


class Neighbours:
    """Pods that stand on nodes. All are looked through only for a pod that has rules, the shy ones for any."""

    def __init__(
        self,
        pods: Callable[[], Iterable[Object]] = tuple,
        shy: Iterable[Object] = (),
        wanted: Callable[[Object], object] = lambda _: True,
    ) -> None:
        """Take pods, those of them that keep others away from them, and which of both are meant."""
        self._pods = pods
        self._shy = tuple(shy)
        self._wanted = wanted

    @classmethod
    def of(cls, pods: Sequence[Object]) -> Self:
        """Look which of these pods keep others away."""
        return cls(lambda: pods, filter(apart_terms, pods))

    def only(self, wanted: Callable[[Object], object]) -> "Neighbours":
        """Return some of them."""
        return Neighbours(self._pods, self._shy, lambda pod: self._wanted(pod) and wanted(pod))

    @cached_property
    def all(self) -> Sequence[Object]:
        """Return them all."""
        return [pod for pod in self._pods() if self._wanted(pod)]

    @cached_property
    def shy(self) -> Sequence[Object]:
        """Return those that keep others away from them."""
        return [pod for pod in self._shy if self._wanted(pod)]


NOBODY = Neighbours()


def barred(pod: Object, nodes: Sequence[Object], neighbours: Neighbours) -> frozenset[str]:
    """Name the nodes that pods which stand somewhere already keep this one from.

    An affinity that no pod there meets, but the pod itself does, bars nothing: the first of a gang
    may go anywhere.
    """
    by_name = {node["metadata"]["name"]: node for node in nodes}
    apart, together = apart_terms(pod), together_terms(pod)
    placed = _placed(neighbours.all, by_name) if apart or together else []
    out: set[str] = set()
    for term in apart:
        out |= _in_domains(nodes, term, _domains_of(term, pod, placed))
    for other, node in _placed(neighbours.shy, by_name):
        for term in apart_terms(other):
            if means(term, other, pod):
                out |= _in_domains(nodes, term, {domain(node, term)})
    for term in together:
        wanted = _domains_of(term, pod, placed)
        if wanted or not means(term, pod, pod):
            out |= by_name.keys() - _in_domains(nodes, term, wanted)
        else:
            out |= {name for name, node in by_name.items() if domain(node, term) is None}
    return frozenset(out)


def _placed(pods: Iterable[Object], nodes: Mapping[str, Object]) -> list[tuple[Object, Object]]:
    return [(each, nodes[name]) for each in pods if (name := _place(each)) in nodes]


def gathering_terms(pod: Object, neighbours: Neighbours) -> list[Term]:
    """Return the terms by which a gang's pods have to stand in one domain, because only they themselves meet them."""
    own = [term for term in together_terms(pod) if means(term, pod, pod)]
    there = [each for each in neighbours.all if _place(each)] if own else []
    return [term for term in own if not any(means(term, pod, each) for each in there)]


def _domains_of(term: Term, pod: Object, placed: Iterable[tuple[Object, Object]]) -> set[str | None]:
    return {domain(node, term) for other, node in placed if means(term, pod, other)}


def _in_domains(nodes: Iterable[Object], term: Term, wanted: set[str | None]) -> set[str]:
    inside = wanted - {None}
    return {node["metadata"]["name"] for node in nodes if domain(node, term) in inside} if inside else set()


def _is_of_its_namespaces(term: Term, owner: Object, other: Object) -> bool:
    namespace, selector = other["metadata"].get("namespace"), term.get("namespaceSelector")
    stated = term.get("namespaces") or ()
    if selector is None and not stated:
        return bool(namespace == owner["metadata"].get("namespace"))
    return namespace in stated or selects(selector, {_NAMESPACE_NAME: namespace or ""})


def _terms(pod: Object, kind: str) -> Sequence[Term]:
    return ((pod["spec"].get("affinity") or {}).get(kind) or {}).get(_REQUIRED) or ()


def _place(pod: Object) -> str:
    if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return ""
    return pod["spec"].get("nodeName") or pod.get("status", {}).get("nominatedNodeName") or ""
