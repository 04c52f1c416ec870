"""Explains in one sentence why a job does not fit: what is missing, where it comes closest, and what would help."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipelinejob.fabric.topology import NODE_LEVEL, Domain, NodeInfo, Topology
from pipelinejob.placement.capacity import Capacity, Demand, Number

_PODS = "pods"  # every pod asks for one of these, which goes without saying
_BYTES = ("memory", "ephemeral-storage", "hugepages-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A replica that found no place, the room that those before it left, and the domains that were open to it."""

    demands: Sequence[Demand]
    num_replicas: int
    num_placed: int
    room: Capacity
    room_before: Capacity
    nodes: Sequence[NodeInfo]
    topology: Topology
    domains: Sequence[Domain]
    required_depth: int  # 0: anywhere

    @property
    def level(self) -> str:
        """Name the level inside one of whose domains the replica must stay."""
        return self.topology.levels[self.required_depth - 1].name

    def count_before(self, demand: Demand, domain: Domain) -> int:
        """Count the stages like this one that the domain had room for before any replica was placed."""
        if domain.node is not None:
            return self.room_before.count(demand, domain.node)
        return sum(self.count_before(demand, child) for child in domain.children)

    def count(self, demand: Demand, domain: Domain) -> int:
        """Count the stages like this one that the domain has room for."""
        if domain.node is not None:
            return self.room.count(demand, domain.node)
        return sum(self.count(demand, child) for child in domain.children)


def shortfall(attempt: Attempt) -> str:
    """Return the sentence on what is missing."""
    usable = [node for node in attempt.nodes if node.unusable is None]
    if not usable:
        return _no_nodes(attempt)
    alone = next((each for each in attempt.demands if not attempt.count(each, attempt.topology.root)), None)
    if alone is not None:
        problem = _fits_nowhere(attempt, alone, usable)
    elif all(each.is_like(attempt.demands[0]) for each in attempt.demands):
        problem = _like_do_not_fit(attempt)
    else:
        problem = _unlike_do_not_fit(attempt, usable)
    return _which_replica(attempt) + problem + _left_out(attempt.nodes)


def _no_nodes(attempt: Attempt) -> str:
    if not attempt.nodes:
        return f"{len(attempt.demands)} stages need nodes, and there are none; add some"
    names = {node.unusable: node.name for node in attempt.nodes}
    reasons = Counter(node.unusable for node in attempt.nodes)
    said = ", ".join(
        f"{names[reason]} {reason}" if count == 1 else f"{count} nodes ({reason})"
        for reason, count in reasons.most_common()
    )
    return f"no node can take a pod: {said}; make one ready, or add some"


def _which_replica(attempt: Attempt) -> str:
    if attempt.num_replicas == 1:
        return ""
    return f"only {attempt.num_placed} of {attempt.num_replicas} replicas find a place: for the next, "


def _left_out(nodes: Sequence[NodeInfo]) -> str:
    out = [node for node in nodes if node.unusable is not None]
    if not out:
        return ""
    return f" (left out: {out[0].name} {out[0].unusable}{f' and {len(out) - 1} more nodes' if len(out) > 1 else ''})"


def _fits_nowhere(attempt: Attempt, demand: Demand, nodes: Sequence[NodeInfo]) -> str:
    allowed = [node for node in nodes if demand.nodes is None or node.name in demand.nodes]
    if not allowed:
        return (
            f"stage {demand.stage} may go to none of the {len(nodes)} usable nodes; "
            "loosen its node selector or affinity, or tolerate their taints"
        )
    wanted = [name for name, amount in demand.requests.items() if amount > 0]

    def worst_share(node: NodeInfo) -> Number:
        return min(_ratio(attempt.room, demand, node.name, name) for name in wanted)

    closest = max(allowed, key=worst_share)
    lacking = {
        name: max(attempt.room.left(closest.name, [name])[0], 0)
        for name in wanted
        if _ratio(attempt.room, demand, closest.name, name) < 1
    }
    return (
        f"stage {demand.stage} needs {_asked(demand)} on one node; "
        f"the closest, {closest.name}, has {amounts(lacking)} free; free some there, ask for less, or add a larger node"
    )


def _asked(demand: Demand) -> str:
    return amounts({name: amount for name, amount in demand.requests.items() if amount > 0 and name != _PODS})


def _ratio(room: Capacity, demand: Demand, node: str, resource: str) -> Fraction:
    return Fraction(room.left(node, [resource])[0]) / Fraction(demand.requests[resource])


def _like_do_not_fit(attempt: Attempt) -> str:
    demand, wanted = attempt.demands[0], len(attempt.demands)
    if attempt.required_depth == 0:
        has = attempt.count(demand, attempt.topology.root)
        missing = f"the cluster has room for {has}; {wanted - has} more are missing"
        return f"{_needs(attempt)}; {missing}{_fits_now(_ways(attempt), '')}"
    largest = max(attempt.domains, key=lambda domain: attempt.count(demand, domain))
    has = attempt.count(demand, largest)
    where = "on one node" if attempt.level == NODE_LEVEL else f"under one {attempt.level}"
    return (
        f"{_needs(attempt)} {where}; the largest free {attempt.level}, {largest.name}, has {has}"
        f"{_fits_now(_ways(attempt), f'; free {wanted - has} more there')}"
    )


def _needs(attempt: Attempt) -> str:
    """Describe what is needed: whole nodes where no node takes more than one stage."""
    demand, wanted = attempt.demands[0], len(attempt.demands)
    most = max(attempt.room.count(demand, node.name) for node in attempt.nodes)
    if most > 1:
        return f"needs room for {wanted} stages with {_asked(demand)} each"
    return f"needs {wanted} node{'s' * (wanted != 1)} with {_asked(demand)} free"


def _fits_now(ways: Sequence[str], otherwise: str) -> str:
    if not ways:
        return otherwise
    *first, last = ways
    return f"; fits now with {', '.join(first)}{', or ' if first else ''}{last}"


def _ways(attempt: Attempt) -> list[str]:
    """Name changes with which all replicas would find a place at once."""
    demand, wanted, replicas = attempt.demands[0], len(attempt.demands), attempt.num_replicas
    rooms = [attempt.count_before(demand, domain) for domain in attempt.domains]
    ways = []
    fewer = next((n for n in range(wanted - 1, 0, -1) if sum(room // n for room in rooms) >= replicas), None)
    if fewer is not None:
        ways.append(f"pipeline: {fewer}")
    if (fitting := sum(room // wanted for room in rooms)) and replicas > 1:
        ways.append(f"data: {fitting}")
    if attempt.required_depth:
        ways += _looser(attempt, lambda domain: attempt.count_before(demand, domain) // wanted)
    return ways


def _looser(attempt: Attempt, fitting: Callable[[Domain], int]) -> list[str]:
    """Name the closest coarser level in whose domains all replicas fit; if there is none, prefer the level only."""
    for depth in range(attempt.required_depth - 1, -1, -1):
        domains = list(attempt.topology.root.at_depth(depth))
        if sum(map(fitting, domains)) >= attempt.num_replicas:
            if depth == 0:
                return ["pipeline preferred instead of required"]
            return [f"only {attempt.topology.levels[depth - 1].name} required and {attempt.level} preferred"]
    return []


def _unlike_do_not_fit(attempt: Attempt, nodes: Sequence[NodeInfo]) -> str:
    names = sorted({name for demand in attempt.demands for name, amount in demand.requests.items() if amount > 0})
    wanted = {name: sum(Fraction(each.requests.get(name, 0)) for each in attempt.demands) for name in names}
    free = {
        name: sum(max(Fraction(attempt.room.left(node.name, [name])[0]), Fraction(0)) for node in nodes)
        for name in names
    }
    where = f" in one {attempt.level}" if attempt.required_depth else ""
    short = {name: wanted[name] - free[name] for name in names if wanted[name] > free[name]}
    if short:
        return f"needs {amounts(wanted)} in all{where}; {amounts(short)} are missing in the cluster"
    return (
        f"{len(attempt.demands)} unlike stages do not fit together{where}, though {amounts(free)} are free in all; "
        f"free whole nodes{', or require a coarser level' if attempt.required_depth > 1 else ''}"
    )


def amounts(resources: Mapping[str, Number]) -> str:
    """Write amounts as a person would: `8 nvidia.com/gpu and 64Gi memory`."""
    parts = [f"{_amount(name, amount)} {name}" for name, amount in sorted(resources.items()) if name]
    if not parts:
        return "nothing"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _amount(resource: str, amount: Number) -> str:
    if resource.startswith(_BYTES) and amount >= 2**20:
        unit, size = ("Gi", 2**30) if amount >= 2**30 else ("Mi", 2**20)
        return f"{float(amount) / size:.4g}{unit}"
    return f"{float(amount):.6g}"
