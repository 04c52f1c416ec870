"""The ways in which a gang may be placed: what each rank asks for, and what its pods' rules for one another allow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from pipelinejob.fabric.topology import NodeInfo
from pipelinejob.placement.capacity import Capacity, Demand, kinds_of
from pipelinejob_operator.admission.pods.neighbours import NOBODY, Neighbours, domain, gathering_terms
from pipelinejob_operator.admission.pods.spreading import limits
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.requests import is_one_a_node

_MOST_GATHERINGS = 64  # domains that are tried, where a gang has to stand in one


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way. `pods` are those of the ranks, where they have rules for one another."""

    demands: tuple[Demand, ...]
    pods: tuple[Object, ...] = ()
    nodes: Sequence[Object] = ()
    neighbours: Neighbours = NOBODY

    def at(self, infos: Sequence[NodeInfo]) -> tuple[tuple[Demand, ...], list[NodeInfo]]:
        """Return the demands and the nodes as placement reckons with them: rules as amounts, taken and to be had."""
        ones = {name for each in kinds_of(self.demands) for name in each.requests if is_one_a_node(name)}
        has_one = dict.fromkeys(ones, Fraction(1))
        known = [replace(info, free={**has_one, **info.free}) for info in infos] if ones else list(infos)
        if not self.pods:
            return self.demands, known
        room = Capacity(known)
        kinds = kinds_of(self.demands)
        found = limits(
            self.pods, self.nodes, self.neighbours, lambda node: max(room.count(kind, node) for kind in kinds)
        )
        taken = [{limit.name: Fraction(limit.taken[index]) for limit in found} for index, _ in enumerate(self.demands)]
        demands = tuple(
            replace(each, requests={**each.requests, **more}) for each, more in zip(self.demands, taken, strict=True)
        )
        has = {info.name: {limit.name: Fraction(limit.capacity[info.name]) for limit in found} for info in known}
        return demands, [replace(info, free={**info.free, **has[info.name]}) for info in known]


def ways(
    demands: Sequence[Demand], pods: Sequence[Object], nodes: Sequence[Object], neighbours: Neighbours
) -> Iterator[Way]:
    """Return a way, or one for each domain where the gang's own affinity wants all of it in one."""
    terms = [term for pod in pods for term in gathering_terms(pod, neighbours)]
    way = Way(demands=tuple(demands), pods=tuple(pods), nodes=nodes, neighbours=neighbours)
    if not terms:
        yield way
        return
    domains = sorted({name for node in nodes if (name := domain(node, terms[0])) is not None})
    for name in domains[:_MOST_GATHERINGS] or [""]:
        inside = frozenset(node["metadata"]["name"] for node in nodes if domain(node, terms[0]) == name)
        yield replace(way, demands=tuple(_only(each, inside) for each in way.demands))


def _only(demand: Demand, nodes: frozenset[str]) -> Demand:
    return replace(demand, nodes=nodes if demand.nodes is None else nodes & demand.nodes)
