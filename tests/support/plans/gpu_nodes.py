"""Nodes of GPUs on a small fabric, and stages to be placed on them."""

from fractions import Fraction

import pytest

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.spec.job import TopologyScope

GPU = "nvidia.com/gpu"
POD, LEAF = "backend.coreweave.cloud/superpod", "backend.coreweave.cloud/leafgroup"


def gpu_node(name, *, pod, leaf, gpus=8, **others):
    return NodeInfo(name=name, labels={POD: pod, LEAF: leaf}, free={GPU: Fraction(gpus)}, **others)


def stages(count, *, gpus=8, replicas=1):
    return [Demand(replica=r, stage=s, requests={GPU: gpus}) for r in range(replicas) for s in range(count)]


def placed(demands, nodes, **scope):
    return place(demands, Topology.of(nodes), nodes, scope=TopologyScope(**scope))


# What does not fit


def refusal(demands, nodes, **scope):
    with pytest.raises(NoPlacementError) as error:
        placed(demands, nodes, **scope)
    return str(error.value)
