"""What does not fit: told in one sentence, with what is missing."""

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.placement.capacity import Demand
from support.plans.gpu_nodes import GPU, gpu_node, placed, refusal, stages


def two_leaves(*, free=(6, 2)):
    return [
        gpu_node(f"{leaf}{index}", pod="A", leaf=leaf)
        for leaf, count in zip("xy", free, strict=True)
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("demands", "nodes", "scope", "sentence"),
    [
        (
            stages(8),
            two_leaves(),
            {"required": "leaf"},
            (
                "needs 8 nodes with 8 nvidia.com/gpu free under one leaf; the largest free leaf, x, has 6; "
                "fits now with pipeline: 6, or only superpod required and leaf preferred"
            ),
        ),
        (
            stages(12, gpus=4),
            two_leaves(free=(4, 1)),
            {"required": "leaf"},
            (
                "needs room for 12 stages with 4 nvidia.com/gpu each under one leaf; the largest free leaf, x, has 8; "
                "fits now with pipeline: 8"
            ),
        ),
        (
            stages(8),
            [gpu_node(f"{name}{i}", pod=name, leaf=f"{name}-0") for name, n in (("A", 6), ("B", 2)) for i in range(n)],
            {"required": "leaf"},
            (
                "needs 8 nodes with 8 nvidia.com/gpu free under one leaf; the largest free leaf, A-0, has 6; "
                "fits now with pipeline: 6, or pipeline preferred instead of required"
            ),
        ),
        (
            stages(10),
            two_leaves(),
            {},
            (
                "needs 10 nodes with 8 nvidia.com/gpu free; the cluster has room for 8; 2 more are missing; "
                "fits now with pipeline: 8"
            ),
        ),
        (
            stages(3, replicas=3),
            two_leaves(),
            {},
            (
                "only 2 of 3 replicas find a place: for the next, needs 3 nodes with 8 nvidia.com/gpu free; "
                "the cluster has room for 2; 1 more are missing; fits now with pipeline: 2, or data: 2"
            ),
        ),
        (
            stages(2, gpus=16),
            two_leaves(),
            {},
            (
                "stage 0 needs 16 nvidia.com/gpu on one node; the closest, x0, has 8 nvidia.com/gpu free; "
                "free some there, ask for less, or add a larger node"
            ),
        ),
        (
            [Demand(replica=0, stage=0, requests={GPU: 1, "memory": 2**34}, nodes=None)],
            two_leaves(),
            {},
            (
                "stage 0 needs 16Gi memory and 1 nvidia.com/gpu on one node; the closest, x0, has 0 memory free; "
                "free some there, ask for less, or add a larger node"
            ),
        ),
        (
            [Demand(replica=0, stage=0, requests={GPU: 1, "pods": 1}, nodes=None)],
            two_leaves(),
            {},
            (
                "stage 0 needs 1 nvidia.com/gpu on one node; the closest, x0, has 0 pods free; "
                "free some there, ask for less, or add a larger node"
            ),
        ),
        (
            [Demand(replica=0, stage=0, requests={GPU: 1}, nodes=frozenset())],
            two_leaves(),
            {},
            (
                "stage 0 may go to none of the 8 usable nodes; "
                "loosen its node selector or affinity, or tolerate their taints"
            ),
        ),
        (
            stages(8),
            [*two_leaves(free=(3, 2)), gpu_node("z", pod="A", leaf="x", unusable="is cordoned")],
            {},
            (
                "needs 8 nodes with 8 nvidia.com/gpu free; the cluster has room for 5; 3 more are missing; "
                "fits now with pipeline: 5 (left out: z is cordoned)"
            ),
        ),
        (stages(8), [], {}, "8 stages need nodes, and there are none; add some"),
        (
            stages(8),
            [gpu_node("z", pod="A", leaf="x", unusable="is cordoned")],
            {},
            "no node can take a pod: z is cordoned; make one ready, or add some",
        ),
        (
            stages(2),
            two_leaves(),
            {"required": "zone"},
            (
                "needs all stages in one zone, but no node carries its label topology.kubernetes.io/zone; "
                "label the nodes, or require another level (superpod, leaf, node)"
            ),
        ),
        (
            [*stages(8), Demand(replica=0, stage=8, requests={GPU: 4})],
            two_leaves(),
            {},
            "needs 68 nvidia.com/gpu in all; 4 nvidia.com/gpu are missing in the cluster",
        ),
        (
            [Demand(replica=0, stage=stage, requests={GPU: 4 + stage}) for stage in range(3)],
            two_leaves(free=(1, 1)),
            {"required": "superpod"},
            (
                "3 unlike stages do not fit together in one superpod, though 16 nvidia.com/gpu are free in all; "
                "free whole nodes"
            ),
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(demands, nodes, scope, sentence):
    assert refusal(demands, nodes, **scope) == sentence


def test_a_level_that_does_not_exist_is_the_authors_mistake():
    with pytest.raises(
        SpecError, match="there is no level 'shelf' in profile coreweave; use one of superpod, leaf, node"
    ):
        placed(stages(2), two_leaves(), preferred="shelf")
