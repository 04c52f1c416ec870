"""Which node labels tell the network's shape, by who sets them.

Two traps stand between providers: AWS numbers its layers from the coarsest, topograph its tiers
from the closest; and topograph renamed every key twice. Here levels always run from coarse to
fine, and a level lists its older names too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelinejob.spec.network.topology_profile import Link, TopologyProfileSpec

NODE_LEVEL = "node"
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One tier of the network. Of `keys` the first that a node carries counts; the others are its older names."""

    name: str
    keys: tuple[str, ...]
    optional: bool = False  # not every node has one, and that needs no note
    link: Link | None = None  # what joins two nodes of one domain, where a TopologyProfile says so

    def value(self, labels: Mapping[str, str]) -> str | None:
        """Return the node's domain at this level, None where it has no such label; an empty one counts as none."""
        for key in self.keys:
            if value := labels.get(key):
                return value
        return None

    def is_called(self, name: str) -> bool:
        """Tell whether a user means this level."""
        return name == self.name or name in self.keys


_CLIQUE = "nvidia.com/gpu.clique"
_REGION = Level(name="region", keys=("topology.kubernetes.io/region",))
_ZONE = Level(name="zone", keys=("topology.kubernetes.io/zone",))


def _nvlink(*keys: str) -> Level:
    return Level(name="nvlink", keys=(*keys, _CLIQUE), optional=True)


def _early(name: str) -> tuple[str, str]:
    """Return topograph 0.1's key, under both of the domains that it had."""
    return f"network.topology.nvidia.com/{name}", f"network.topology.kubernetes.io/{name}"


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
        Level(name="core", keys=("network.topology.nvidia.com/core", *_early("datacenter"))),
        Level(name="spine", keys=_early("spine")),
        Level(name="leaf", keys=("network.topology.nvidia.com/leaf", *_early("block"))),
        _nvlink(*_early("accelerator")),
    ),
    "kueue-docs": (  # the placeholder of Kueue's documentation, copied verbatim by many
        _ZONE,
        Level(name="block", keys=("cloud.provider.com/topology-block",)),
        Level(name="rack", keys=("cloud.provider.com/topology-rack",)),
        Level(name="host", keys=("cloud.provider.com/topology-host",)),
        _nvlink(),
    ),
    "volcano": (  # its label discovery: super-nodes carry the first two, plain ones the last
        _ZONE,
        Level(name="hypercluster", keys=("volcano.sh/hypercluster",), optional=True),
        Level(name="hypernode", keys=("volcano.sh/hypernode",), optional=True),
        Level(name="tor", keys=("volcano.sh/tor",), optional=True),
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
PLAIN = "kubernetes"  # its labels stand beside every provider's own


def levels_of(profile: TopologyProfileSpec) -> tuple[Level, ...]:
    """Return the levels of a TopologyProfile."""
    return tuple(
        Level(name=level.name, keys=level.keys, optional=level.optional, link=level.link) for level in profile.levels
    )
