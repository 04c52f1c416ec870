"""What the network looks like, read from node labels: a tree of domains, from coarse (zones) to fine (NVLink domains).

A profile names the labels of one provider. Two traps stand between providers: AWS numbers its layers from the coarsest,
topograph its tiers from the closest. Here levels always run from coarse to fine, and below the last one stands the
node.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from pipelinejob import spec
from pipelinejob.errors import SpecError

NODE_LEVEL = "node"
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """A node as placement sees it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    free: Mapping[str, Fraction] = field(default_factory=dict)  # what is left of each resource
    unusable: str | None = None  # why no new pod may go there: `is cordoned`, `is not ready`


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One tier of the network. Of `keys` the first that a node carries counts; the others are its older names."""

    name: str
    keys: tuple[str, ...]
    optional: bool = False  # not every node has one, and that needs no note

    def value(self, labels: Mapping[str, str]) -> str | None:
        """Give the node's domain at this level, None where it has no such label; an empty one counts as none."""
        return next((labels[key] for key in self.keys if labels.get(key)), None)

    def is_called(self, name: str) -> bool:
        """Say whether a user means this level."""
        return name == self.name or name in self.keys


_CLIQUE = "nvidia.com/gpu.clique"
_REGION = Level(name="region", keys=("topology.kubernetes.io/region",))
_ZONE = Level(name="zone", keys=("topology.kubernetes.io/zone",))
_NODE = Level(name=NODE_LEVEL, keys=(HOSTNAME,))


def _nvlink(*keys: str) -> Level:
    return Level(name="nvlink", keys=(*keys, _CLIQUE), optional=True)


# Each from coarse to fine, the zone above all, the NVLink domain below the switches.
PROFILES: Mapping[str, tuple[Level, ...]] = {
    "gke": (
        _ZONE,
        Level(name="block", keys=("cloud.google.com/gce-topology-block",)),
        Level(name="subblock", keys=("cloud.google.com/gce-topology-subblock",)),
        Level(name="host", keys=("cloud.google.com/gce-topology-host",)),
        _nvlink(),
    ),
    "eks": (  # layer 1 is the coarsest
        _ZONE,
        Level(name="spine", keys=("topology.k8s.aws/network-node-layer-1",)),
        Level(name="aggregation", keys=("topology.k8s.aws/network-node-layer-2",)),
        Level(name="leaf", keys=("topology.k8s.aws/network-node-layer-3",)),
        _nvlink("topology.k8s.aws/ultraserver-id"),
    ),
    "oci": (
        _ZONE,
        Level(name="island", keys=("oci.oraclecloud.com/host.hpc_island_id",)),
        Level(name="block", keys=("oci.oraclecloud.com/host.network_block_id",)),
        Level(name="local-block", keys=("oci.oraclecloud.com/host.local_block_id",)),
        Level(name="rack", keys=("oci.oraclecloud.com/host.rack_id",)),
        _nvlink(),
    ),
    "coreweave": (
        _ZONE,
        Level(name="fabric", keys=("backend.coreweave.cloud/fabric",)),
        Level(name="superpod", keys=("backend.coreweave.cloud/superpod",)),
        Level(name="leaf", keys=("backend.coreweave.cloud/leafgroup",)),
        _nvlink("ds.coreweave.com/nvlink.domain"),
    ),
    "alibaba": (
        _ZONE,
        Level(name="pod", keys=("alibabacloud.com/point-of-delivery",)),
        Level(name="leaf", keys=("alibabacloud.com/asw-id",)),
        _nvlink(),
    ),
    "topograph": (  # tier 0 is the closest switch
        _ZONE,
        Level(name="tier-3", keys=("fabric.topograph.run/tier-3",)),
        Level(name="core", keys=("fabric.topograph.run/tier-2",)),
        Level(name="spine", keys=("fabric.topograph.run/tier-1",)),
        Level(name="leaf", keys=("fabric.topograph.run/tier-0",)),
        _nvlink("accelerator.topograph.run/domain"),
        Level(name="nvlink-sub", keys=("accelerator.topograph.run/sub-domain",), optional=True),
    ),
    "topograph-v0": (  # versions 0.2 to 0.5, and what 0.1 called the same
        _ZONE,
        Level(name="core", keys=("network.topology.nvidia.com/core", "network.topology.nvidia.com/datacenter")),
        Level(name="spine", keys=("network.topology.nvidia.com/spine",)),
        Level(name="leaf", keys=("network.topology.nvidia.com/leaf", "network.topology.nvidia.com/block")),
        _nvlink("network.topology.nvidia.com/accelerator"),
    ),
    "kueue-docs": (  # the placeholder of Kueue's documentation, copied verbatim by many
        _ZONE,
        Level(name="block", keys=("cloud.provider.com/topology-block",)),
        Level(name="rack", keys=("cloud.provider.com/topology-rack",)),
        Level(name="host", keys=("cloud.provider.com/topology-host",)),
        _nvlink(),
    ),
    "kubernetes": (
        _REGION,
        _ZONE,
        Level(name="block", keys=("topology.kubernetes.io/block",)),
        Level(name="rack", keys=("topology.kubernetes.io/rack",)),
        _nvlink(),
    ),
}
AUTO = "auto"
_SHOWN = 3  # names in a note
_EVERYWHERE = "kubernetes"  # its labels stand beside every provider's own
_COMMON = {key for level in PROFILES[_EVERYWHERE] for key in level.keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A part of the network: its path from coarse to fine, the domains inside, or the nodes where there are none."""

    path: tuple[str, ...]
    children: tuple["Domain", ...] = ()
    node: str | None = None

    @property
    def name(self) -> str:
        """Give what the domain's own label says."""
        return self.path[-1] if self.path else "the cluster"

    def at_depth(self, depth: int) -> Iterable["Domain"]:
        """Give the domains so many levels below this one."""
        if depth == 0:
            yield self
        else:
            for child in self.children:
                yield from child.at_depth(depth - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The tree of domains over some nodes."""

    profile: str
    levels: tuple[Level, ...]  # those that at least one node carries, coarse to fine, and the node itself
    absent: tuple[Level, ...]  # those of the profile that no node carries
    paths: Mapping[str, tuple[str, ...]]  # node -> its domains, one a level, the node last
    root: Domain
    notes: tuple[str, ...]  # what was odd about the labels

    @classmethod
    def of(cls, nodes: Sequence[NodeInfo], profile: str = AUTO, levels: Sequence[str] | None = None) -> "Topology":
        """Read the tree from labels: by `levels` (label keys, coarse to fine) if given, else by a profile.

        A node without a level's label stands in a domain of its own, and a note says so. Raises SpecError for a profile
        that does not exist.
        """
        if levels is not None:
            return _topology("levels", tuple(Level(name=key, keys=(key,)) for key in levels if key != HOSTNAME), nodes)
        name = detect(nodes) if profile == AUTO else profile
        if name not in PROFILES:
            known = ", ".join(PROFILES)
            raise SpecError("spec.topology.profile", f"there is no profile {name!r}; use {AUTO}, or one of {known}")
        return _topology(name, PROFILES[name], nodes)

    @classmethod
    def from_spec(cls, topology: spec.Topology, nodes: Sequence[NodeInfo]) -> "Topology":
        """Read the tree that a manifest asks for."""
        return cls.of(nodes, topology.profile, topology.levels)

    def depth_of(self, level: str, *, path: str) -> int | None:
        """Count the levels down to the one that a user calls so; None if the profile knows it but no node carries it.

        Raises SpecError at `path` for a level that does not exist.
        """
        for depth, each in enumerate(self.levels, start=1):
            if each.is_called(level):
                return depth
        if any(each.is_called(level) for each in self.absent):
            return None
        known = ", ".join(each.name for each in self.levels)
        raise SpecError(path, f"there is no level {level!r} in profile {self.profile}; use one of {known}")


def detect(nodes: Sequence[NodeInfo]) -> str:
    """Name the profile whose own labels most nodes carry; where none are, the plain Kubernetes one."""
    counts = {name: _carriers(levels, nodes) for name, levels in PROFILES.items()}
    best = max(counts, key=lambda name: counts[name])  # of equals the first
    return best if counts[best] else _EVERYWHERE


def _carriers(levels: Sequence[Level], nodes: Sequence[NodeInfo]) -> int:
    own = {key for level in levels for key in level.keys} - _COMMON
    return sum(any(node.labels.get(key) for key in own) for node in nodes)


def _topology(profile: str, levels: Sequence[Level], nodes: Sequence[NodeInfo]) -> Topology:
    carried = tuple(level for level in levels if any(level.value(node.labels) for node in nodes))
    paths = {node.name: _path(node, carried) for node in sorted(nodes, key=lambda node: node.name)}
    return Topology(
        profile=profile,
        levels=(*carried, _NODE),
        absent=tuple(level for level in levels if level not in carried),
        paths=paths,
        root=_domain((), sorted(paths.values())),
        notes=tuple(note for level in carried for note in _notes(level, nodes)),
    )


def _path(node: NodeInfo, levels: Sequence[Level]) -> tuple[str, ...]:
    return (*(level.value(node.labels) or f"only {node.name}" for level in levels), node.name)


def _domain(path: tuple[str, ...], node_paths: Sequence[tuple[str, ...]]) -> Domain:
    depth = len(path)
    if node_paths and len(node_paths[0]) == depth:
        return Domain(path=path, node=path[-1])
    parts: dict[str, list[tuple[str, ...]]] = {}
    for each in node_paths:
        parts.setdefault(each[depth], []).append(each)
    return Domain(path=path, children=tuple(_domain((*path, name), part) for name, part in parts.items()))


def _notes(level: Level, nodes: Sequence[NodeInfo]) -> Iterable[str]:
    without = sorted(node.name for node in nodes if level.value(node.labels) is None)
    if without and not level.optional:
        shown = ", ".join(without[:_SHOWN]) + (f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else "")
        yield f"{shown}: no label {level.keys[0]}, so each counts as a {level.name} of its own"
