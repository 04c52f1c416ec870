"""The clusters that placements are compared on: three fabrics, each with seeded occupancies, and the anchors' 64 nodes.

Links state what a GPU attains across each tier, not what its port could: Arnold (arXiv 2509.15940)
saw point-to-point traffic lose up to 70 % when it crossed spines that others use, so a spine here
gives 0.3 of a leaf.
"""

import random
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from pipelinejob.fabric import network
from pipelinejob.fabric import synthetic as fabric
from pipelinejob.fabric.hardware import DeviceKind, default
from pipelinejob.fabric.network import Network
from pipelinejob.fabric.topology import NodeInfo, Profiles, Topology

H100 = "NVIDIA-H100-80GB-HBM3"
GB200 = "NVIDIA-GB200"

_LEAF, _SPINE, _CORE = (
    {"bytesPerSecond": 47.5e9, "latencySeconds": 5e-6},  # InfiniBand NDR, a port for each GPU
    {"bytesPerSecond": 14.25e9, "latencySeconds": 8e-6},
    {"bytesPerSecond": 5e9, "latencySeconds": 15e-6},
)

UNEVEN: dict[str, Any] = {  # leaves as uneven as the anchors', three times as many nodes
    "levels": ["superpod", "leaf"],
    "links": {"cluster": _CORE, "superpod": _SPINE, "leaf": _LEAF},
    "node": {"product": H100, "gpus": 8},
    "groups": [
        {"superpod": "A", "leaf": [22, 16, 12, 12, 10, 6, 4]},
        {"superpod": "B", "leaf": [12, 10, 6, 6, 4, 4, 2, 2]},
        {"superpod": "C", "leaf": [16, 16, 8, 8, 8, 4, 4]},
    ],
}
RAILS: dict[str, Any] = {  # a block's eight leaf switches carry a rail each, so it is one hop wide
    "levels": ["pod", "block"],
    "links": {"cluster": _CORE, "pod": _SPINE, "block": _LEAF},
    "node": {"product": H100, "gpus": 8, "rails": 8},
    "groups": [{"pod": ["A", "B"], "block": 4, "nodes": 32}],
}
NVL72: dict[str, Any] = {  # racks of 18 nodes that NVLink joins
    "levels": ["block", "nvlink"],
    "links": {"cluster": _SPINE, "block": _LEAF, "nvlink": {"kind": "nvl72"}},
    "node": {"product": GB200, "gpus": 4},
    "groups": [{"block": ["A", "B"], "nvlink": 6, "nodes": 18}],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """One cluster, and how much of it is in use."""

    name: str
    nodes: tuple[NodeInfo, ...]
    topology: Topology
    profiles: Profiles
    network: Network
    device: DeviceKind
    gpus: int  # of a node
    num_busy: int

    def occupied(self, seed: int) -> tuple[NodeInfo, ...]:
        """Return the nodes with `num_busy` of them taken: those that this seed draws."""
        taken = set(random.Random(seed).sample(sorted(node.name for node in self.nodes), self.num_busy))
        return tuple(emptied(node) if node.name in taken else node for node in self.nodes)


def emptied(node: NodeInfo) -> NodeInfo:
    """Return the node with nothing left."""
    return replace(node, free=dict.fromkeys(node.free, Fraction(0)))


def described(name: str, description: dict[str, Any], *, busy: float) -> Fabric:
    """Return a described cluster of which a share is in use. Node names are shuffled, as a cluster's are."""
    read = fabric.read(description)
    names = [node.name for node in read.nodes]
    shuffled = [f"n{index:04d}" for index in range(len(names))]
    random.Random(1).shuffle(shuffled)
    nodes = tuple(replace(node, name=name) for node, name in zip(read.nodes, shuffled, strict=True))
    topology = Topology.of(nodes, profiles=read.profiles)
    device = default().device_of(description["node"]["product"])
    assert device is not None, "the hardware file knows it"
    return Fabric(
        name=name,
        nodes=nodes,
        topology=topology,
        profiles=read.profiles,
        network=network.of(topology, default(), device),
        device=device,
        gpus=description["node"]["gpus"],
        num_busy=round(busy * len(nodes)),
    )


def all_three() -> list[Fabric]:
    """Return the fabrics of the benchmark."""
    return [
        described("uneven leaf-spine", UNEVEN, busy=0.4),
        described("rail-optimised", RAILS, busy=0.5),
        described("NVL72", NVL72, busy=0.45),
    ]


def anchors() -> Fabric:
    """Return the 64 nodes that peers were measured on, their names shuffled in the same way, 24 of them to be taken."""
    leaves = {"A": [11, 8, 6, 6, 5, 3, 2], "B": [6, 5, 3, 3, 2, 2, 1, 1]}
    places = [
        (pod, f"{pod}-leaf-{leaf}") for pod in leaves for leaf, size in enumerate(leaves[pod]) for _ in range(size)
    ]
    names = [f"gpu-{index:03d}" for index in range(len(places))]
    random.seed(1)
    random.shuffle(names)
    free = {"nvidia.com/gpu": Fraction(8), "pods": Fraction(110), "memory": Fraction(2**60)}
    nodes = tuple(
        NodeInfo(name=name, labels={"x/superpod": pod, "x/leaf": leaf}, free=free)
        for name, (pod, leaf) in zip(names, places, strict=True)
    )
    topology = Topology.of(nodes, levels=["x/superpod", "x/leaf"])
    model = described("anchors", UNEVEN, busy=0)
    return Fabric(
        name="anchors",
        nodes=nodes,
        topology=topology,
        profiles={},
        network=model.network,
        device=model.device,
        gpus=8,
        num_busy=24,
    )


def anchors_occupied(fabric_of_anchors: Fabric, seed: int) -> tuple[NodeInfo, ...]:
    """Return the anchors' occupancy: the module-wide generator, as `uneven_fabric.py` draws it."""
    random.seed(seed)
    taken = set(random.sample(sorted(node.name for node in fabric_of_anchors.nodes), fabric_of_anchors.num_busy))
    return tuple(emptied(node) if node.name in taken else node for node in fabric_of_anchors.nodes)


def small_ones() -> list[Fabric]:
    """Return the three fabrics shrunk so far that a solver can prove what is best on them."""
    uneven = {**UNEVEN, "groups": [{"superpod": "A", "leaf": [7, 5, 4, 2]}, {"superpod": "B", "leaf": [6, 3, 2, 1]}]}
    rails = {**RAILS, "groups": [{"pod": ["A", "B"], "block": 3, "nodes": 6}]}
    nvl = {**NVL72, "groups": [{"block": ["A", "B"], "nvlink": 3, "nodes": 5}]}
    return [
        described("uneven leaf-spine, small", uneven, busy=0.4),
        described("rail-optimised, small", rails, busy=0.4),
        described("NVL72, small", nvl, busy=0.35),
    ]
