"""What every peer's model sees: the tree of domains, how many pods each node still takes, and how ranks are named."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelinejob.fabric.topology import Domain, NodeInfo, Topology
from pipelinejob.placement.capacity import Capacity, Demand

Path = tuple[str, ...]
Chosen = list[Path]  # the node of each pod, by its path, in the order in which pods were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A cluster as a scheduler finds it."""

    topology: Topology
    nodes: Sequence[NodeInfo]

    def room(self) -> Capacity:
        """Return the room before anything is placed."""
        return Capacity(self.nodes)


def counts(domain: Domain, demand: Demand, room: Capacity, into: dict[Path, int]) -> int:
    """Count how many such pods each domain takes, from the nodes up."""
    return _summed(domain, room.counts(demand), into)


def _summed(domain: Domain, by_node: Mapping[str, int], into: dict[Path, int]) -> int:
    if domain.node is not None:
        count = by_node.get(domain.node, 0)
    else:
        count = sum(_summed(child, by_node, into) for child in domain.children)
    into[domain.path] = count
    return count


def leaves_of(domain: Domain) -> Iterable[Domain]:
    """Return the nodes of a domain, as domains."""
    if domain.node is not None:
        yield domain
    for child in domain.children:
        yield from leaves_of(child)


def groups_alike(demands: Sequence[Demand]) -> list[list[Demand]]:
    """Return runs of neighbouring ranks that ask for the same: what a user must write as a PodSet each."""
    runs: list[list[Demand]] = []
    for demand in demands:
        if runs and demand.is_like(runs[-1][0]):
            runs[-1].append(demand)
        else:
            runs.append([demand])
    return runs
