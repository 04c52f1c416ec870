"""Which link joins two ranks, by how far apart in the topology they stand.

A depth counts levels from the coarsest: two ranks have their closest common domain at depth 0 if
only the cluster as a whole holds both, at depth d if a domain of level d does and none finer, and
at the last depth if one node does.
"""

from dataclasses import dataclass

from pipelinejob.fabric.hardware import DeviceKind, Hardware, HardwareError, LinkKind
from pipelinejob.fabric.topology import Topology
from pipelinejob.spec.network.topology_profile import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The links of a topology: `links[d]` joins two ranks whose closest common domain has depth d."""

    levels: tuple[str, ...]  # their names, coarse to fine, the node last
    links: tuple[LinkKind, ...]  # one more than there are levels

    def __post_init__(self) -> None:
        assert len(self.links) == len(self.levels) + 1, "one link for the cluster, one for each level"

    def between(self, one: tuple[str, ...], other: tuple[str, ...]) -> LinkKind:
        """Return the link between two nodes, by their paths."""
        return self.links[common_depth(one, other)]


def common_depth(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Count the domains that two nodes share, from the coarsest down; all of them if it is one node."""
    for depth, (here, there) in enumerate(zip(one, other, strict=True)):
        if here != there:
            return depth
    return len(one)


def of(topology: Topology, hardware: Hardware, device: DeviceKind | None = None) -> Network:
    """Return the links of a topology: those that its TopologyProfile states, the others as `hardware` knows the levels.

    Raises HardwareError for a link kind that nobody has described.
    """
    names = [level.name for level in topology.levels]
    stated = [topology.link, *(level.link for level in topology.levels)]
    return Network(
        levels=tuple(names),
        links=tuple(
            _stated(link, hardware) if link is not None else hardware.link_between(names[:-1], depth, device)
            for depth, link in enumerate(stated)
        ),
    )


def _stated(link: Link, hardware: Hardware) -> LinkKind:
    if link.bytes_per_second is not None:
        latency_s = link.latency_seconds or 0.0
        return LinkKind(name="as stated", latency_s=latency_s, bytes_per_s=link.bytes_per_second)
    kind = hardware.links.get(link.kind or "")
    if kind is None:
        known = ", ".join(sorted(hardware.links))
        raise HardwareError(f"a TopologyProfile names the link kind {link.kind}; use one of {known}, or describe it")
    return kind
