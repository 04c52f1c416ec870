"""Late binding: assigns ranks to pods after another scheduler has chosen their nodes.

A set of pods on given nodes is a cluster with exactly that much room, so numbering them is placing
the job there: what makes a chain of stages short among free nodes makes it short among these. Pods
of like stages are interchangeable, so a rank goes to any pod made for a stage like its own, and to
no other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.contract.plan import Assignment, Placement
from pipelinejob.fabric.network import common_depth
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.spec.network.objective import Objective

RankKey = tuple[int, int]  # replica, stage


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPod:
    """A pod that has a node and no number; `shape` says which stages it was made for."""

    name: str
    shape: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbering:
    """The pod of each rank, and the placement that results."""

    placement: Placement
    pods: Mapping[RankKey, str]


def number(
    shapes: Mapping[RankKey, str],
    pods: Sequence[BoundPod],
    topology: Topology,
    nodes: Sequence[NodeInfo],
    *,
    prices: Prices | None = None,
) -> Numbering:
    """Assign every rank to a pod so that a step is short; deterministic for the same pods and prices.

    `shapes` says of every rank which pods may become it; of each shape there are as many pods as
    ranks. `nodes` are those with pods, or more of the cluster's, and `topology` is the cluster's.
    Without prices crossings count, coarse levels first.
    """
    here = Counter((pod.node, pod.shape) for pod in pods)
    room = [
        replace(
            node,
            free={shape: Fraction(here[node.name, shape]) for shape in sorted({*shapes.values()})},
            unusable=None,  # a pod is there, whatever has become of the node since
        )
        for node in nodes
    ]
    demands = [Demand(replica=rank[0], stage=rank[1], requests={shape: Fraction(1)}) for rank, shape in shapes.items()]
    try:
        placed = place(demands, topology, room, prices=prices, objective=Objective.CHAIN)
    except NoPlacementError:  # its search is bounded, and these pods leave it no room to spare
        placed = _in_a_walk(shapes, pods, topology, prices)
    # What is left beside these pods is the other scheduler's to know.
    placed = placed.model_copy(update={"room_left": {}, "trade": None})
    return Numbering(placement=placed, pods=_names(shapes, pods, placed))


def _names(shapes: Mapping[RankKey, str], pods: Sequence[BoundPod], placed: Placement) -> dict[RankKey, str]:
    waiting: dict[tuple[str, str], list[str]] = {}
    for pod in sorted(pods, key=lambda pod: pod.name, reverse=True):
        waiting.setdefault((pod.node, pod.shape), []).append(pod.name)
    ranks = sorted((each.replica, each.stage, each.node) for each in placed.assignments)
    return {(replica, stage): waiting[node, shapes[replica, stage]].pop() for replica, stage, node in ranks}


def _in_a_walk(
    shapes: Mapping[RankKey, str], pods: Sequence[BoundPod], topology: Topology, prices: Prices | None
) -> Placement:
    """Assign the pods of each shape in the order of a walk through the tree, domain by domain."""
    met: dict[str, list[str]] = {}
    for pod in sorted(pods, key=lambda pod: (topology.paths[pod.node], pod.name), reverse=True):
        met.setdefault(pod.shape, []).append(pod.node)
    found = {rank: topology.paths[met[shapes[rank]].pop()] for rank in sorted(shapes)}
    num_stages = len({stage for _, stage in found})
    paths = list(found.values())
    replicas = [paths[start : start + num_stages] for start in range(0, len(paths), num_stages)]
    depths = [common_depth(*ends) for chain in replicas for ends in pairwise(chain)]
    return Placement(
        assignments=tuple(
            Assignment(replica=replica, stage=stage, node=path[-1], path=path)
            for (replica, stage), path in found.items()
        ),
        crossings={each.name: sum(depth <= level for depth in depths) for level, each in enumerate(topology.levels)},
        penalty_s=prices.penalty_s(replicas) if prices else None,
    )
