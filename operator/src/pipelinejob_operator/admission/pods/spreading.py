"""How many of a job's own pods a node may take beside one another, by their anti-affinity and topology spread.

Placement reckons with amounts on nodes. So each such rule becomes one more resource: what a rank
takes of it, and what each node has. Where a rule is about larger domains, what a domain may take
is handed to the nodes of it that have the most room. A spread is honoured as evenly as the room
allows, though a pod that is pinned to a node meets it in the scheduler's eyes wherever it stands.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelinejob_operator.admission.pods.neighbours import Neighbours, Term, apart_terms, domain, means
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.selectors import selects

_UNBOUNDED = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What ranks take of a rule, in their order, and what each node has of it."""

    name: str  # as a person reads it: what is missing where there is no place
    taken: tuple[int, ...]
    capacity: Mapping[str, int]


def limits(
    pods: Sequence[Object], nodes: Sequence[Object], neighbours: Neighbours, room: Callable[[str], int]
) -> list[Limit]:
    """Return the rules that a gang's pods set one another.

    `room` gives how many of the ranks a node could take, were there no rule.
    """
    apart = _unlike(each for pod in pods for each in apart_terms(pod))
    spread = _unlike(each for pod in pods for each in spreads(pod))
    found = [
        *(_apart(term, pods, nodes, room) for term in apart),
        *(_spread(constraint, pods, nodes, neighbours, room) for constraint in spread),
    ]
    return [each for each in found if any(each.taken)]


def _apart(term: Term, pods: Sequence[Object], nodes: Sequence[Object], room: Callable[[str], int]) -> Limit:
    """Let whom the term means stand alone among those that state it, and these beside each other."""
    owners = [term in apart_terms(pod) for pod in pods]
    owner = pods[owners.index(True)]
    meant = [means(term, owner, pod) for pod in pods]
    whole = len(pods)
    taken = tuple(whole if is_meant else int(is_owner) for is_owner, is_meant in zip(owners, meant, strict=True))
    if not any(meant):
        taken = (0,) * len(pods)
    return Limit(
        name=f"place in a {term['topologyKey']} of its own",
        taken=taken,
        capacity=_handed_down(nodes, term, lambda _: whole, lambda node: whole * min(1, room(node))),
    )


def _spread(
    constraint: Term,
    pods: Sequence[Object],
    nodes: Sequence[Object],
    neighbours: Neighbours,
    room: Callable[[str], int],
) -> Limit:
    owner = next(pod for pod in pods if constraint in spreads(pod))
    counted = [selects(constraint.get("labelSelector"), pod["metadata"].get("labels") or {}) for pod in pods]
    usable = [node for node in nodes if domain(node, constraint) is not None]
    there = _counts(constraint, owner, usable, neighbours)
    rooms: dict[str, int] = defaultdict(int)
    for node in usable:
        rooms[domain(node, constraint) or ""] += room(node["metadata"]["name"])
    shares = _even(sum(counted), there, rooms, skew=constraint["maxSkew"])
    return Limit(
        name=f"place in an even spread over {constraint['topologyKey']}",
        taken=tuple(map(int, counted)),
        capacity=_handed_down(nodes, constraint, lambda name: shares.get(name, 0), room),
    )


def _even(number: int, there: Mapping[str, int], rooms: Mapping[str, int], *, skew: int) -> dict[str, int]:
    """Share pods out to the domains that have fewest, as long as none has more than `skew` beyond the least."""
    shares = dict.fromkeys(rooms, 0)
    for _ in range(number):
        totals = {name: there.get(name, 0) + share for name, share in shares.items()}
        least = min(totals.values(), default=0)
        open_to = [name for name in totals if shares[name] < rooms[name] and totals[name] + 1 - least <= skew]
        if not open_to:
            break
        shares[min(open_to, key=lambda name: (totals[name], name))] += 1
    return shares


def _handed_down(
    nodes: Iterable[Object], term: Term, of_domain: Callable[[str], int], of_node: Callable[[str], int]
) -> dict[str, int]:
    """Assign each node its part of what its domain may take, those with the most room first."""
    capacity: dict[str, int] = {}
    members: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        name, inside = node["metadata"]["name"], domain(node, term)
        if inside is None:
            capacity[name] = _UNBOUNDED  # in no domain: the rule does not speak of it
        else:
            members[inside].append(name)
    for inside, names in members.items():
        left = of_domain(inside)
        for name in sorted(names, key=lambda each: (-of_node(each), each)):
            capacity[name] = min(left, of_node(name))
            left -= capacity[name]
    return capacity


def _counts(constraint: Term, owner: Object, nodes: Iterable[Object], neighbours: Neighbours) -> dict[str, int]:
    where = {node["metadata"]["name"]: domain(node, constraint) or "" for node in nodes}
    counts: dict[str, int] = defaultdict(int)
    for pod in neighbours.all:
        place = where.get(pod["spec"].get("nodeName") or "")
        is_of_it = pod["metadata"].get("namespace") == owner["metadata"].get("namespace")
        if place and is_of_it and selects(constraint.get("labelSelector"), pod["metadata"].get("labels") or {}):
            counts[place] += 1
    return counts


def spreads(pod: Object) -> list[Term]:
    """Return the topology spread that a pod insists on."""
    stated: Sequence[Term] = pod["spec"].get("topologySpreadConstraints") or ()
    return [each for each in stated if each.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule"]


def _unlike(terms: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for term in terms:
        if term not in found:
            found.append(term)
    return found
