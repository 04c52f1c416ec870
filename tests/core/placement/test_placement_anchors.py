"""The cases that peers were measured on: 64 nodes in fifteen leaves of unlike size, 24 of them in use.

What peers did there: Kueue 3.12 leaf crossings in the tightest superpod (25.0 and 7.2 nodes left),
4 for eight unlike stages on the empty fabric, 3.12 for two node types, two superpod crossings
after a lost node.
"""

from itertools import pairwise
from statistics import mean

import pytest

from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.placement.repair import repair
from pipelinejob.spec.job import TopologyScope
from pipelinejob.spec.network.objective import Objective
from support.plans.placement_fabrics import anchors, anchors_occupied

FABRIC = anchors()
SEEDS = range(8)
EVEN = frozenset(node.name for node in FABRIC.nodes if int(node.name.removeprefix("gpu-")) % 2 == 0)
ODD = frozenset(node.name for node in FABRIC.nodes) - EVEN


def stages(count, *, unlike=False):
    """Return a chain of stages that take a node each; unlike ones ask for different amounts of memory."""
    return [
        Demand(replica=0, stage=stage, requests={"nvidia.com/gpu": 8, "memory": 2**30 * (stage if unlike else 0)})
        for stage in range(count)
    ]


def two_types():
    return [
        Demand(replica=0, stage=stage, requests={"nvidia.com/gpu": 8}, nodes=EVEN if stage < 4 else ODD)
        for stage in range(8)
    ]


def on(nodes, demands, **options):
    placement = place(demands, FABRIC.topology, nodes, **options)
    superpod, leaf, _ = placement.crossings.values()
    return superpod, leaf, *list(placement.room_left.values())[:2]


def means(demands, **options):
    """Return superpod crossings, leaf crossings, and the largest chain in a superpod and in a leaf that still fits."""
    return tuple(
        mean(each) for each in zip(*(on(anchors_occupied(FABRIC, s), demands, **options) for s in SEEDS), strict=True)
    )


def test_sixteen_stages_cross_one_leaf_on_the_empty_fabric():
    assert on(FABRIC.nodes, stages(16))[:2] == (0, 1)


def test_eight_unlike_stages_cross_nothing_on_the_empty_fabric():
    assert on(FABRIC.nodes, stages(8, unlike=True))[:2] == (0, 0)


@pytest.mark.parametrize("unlike", [False, True])
def test_the_chain_objective_crosses_one_and_a_half_leaves(unlike):
    assert means(stages(12, unlike=unlike), objective=Objective.CHAIN) == (0, 1.5, 17.0, 5.75)


@pytest.mark.parametrize("unlike", [False, True])
def test_packed_it_crosses_as_many_as_the_best_of_peers_and_leaves_as_much(unlike):
    assert means(stages(12, unlike=unlike), objective=Objective.PACK) == (0, 3.125, 25.0, 7.25)


def test_two_node_types_cross_three_quarters_of_a_leaf():
    assert means(two_types(), objective=Objective.CHAIN)[:2] == (0, 0.75)


def test_two_node_types_never_break_a_required_superpod():
    for seed in SEEDS:
        placement = place(
            two_types(),
            FABRIC.topology,
            anchors_occupied(FABRIC, seed),
            scope=TopologyScope(required="x/superpod", preferred="x/leaf"),
        )

        assert placement.crossings["x/superpod"] == 0


@pytest.mark.parametrize("stage", range(8))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_nodes_stage_stays_in_the_superpod_while_that_has_a_free_node(seed, stage):
    nodes, demands = anchors_occupied(FABRIC, seed), stages(8)
    before = place(demands, FABRIC.topology, nodes)
    lost = before.assignments[stage]
    taken = {each.node for each in before.assignments}
    superpod = lost.path[0]
    has_room = any(
        node.free["nvidia.com/gpu"] and node.name not in taken and FABRIC.topology.paths[node.name][0] == superpod
        for node in nodes
    )

    left = [node for node in nodes if node.name != lost.node]
    again = repair(demands, FABRIC.topology, left, before=before)

    assert has_room
    assert again.crossings["x/superpod"] == 0
    moved = [one.stage for one, other in zip(before.assignments, again.assignments, strict=True) if one != other]
    assert moved == [stage]


def test_the_order_of_the_chain_is_that_of_its_stages():
    placement = place(stages(12), FABRIC.topology, anchors_occupied(FABRIC, 0))

    leaves = [each.path[1] for each in placement.assignments]
    assert sum(one != other for one, other in pairwise(leaves)) == len(set(leaves)) - 1
