"""Lost nodes: their stages find a place nearby, the chain's order is kept, and healthy stages move only if it pays."""

from dataclasses import replace
from fractions import Fraction

import pytest

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.contract.plan import Assignment, Placement
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.placement.repair import repair
from pipelinejob.spec.job import TopologyScope

LEVELS = ["pod", "leaf"]
GPU = "nvidia.com/gpu"


def cluster(**leaves):
    """Return leaves by name and size; the name's first letter is the pod's."""
    return [
        NodeInfo(name=f"{leaf}{i}", labels={"pod": leaf[0], "leaf": leaf}, free={GPU: Fraction(8)})
        for leaf, size in leaves.items()
        for i in range(size)
    ]


def stages(count, replicas=1):
    return [Demand(replica=r, stage=s, requests={GPU: 8}) for r in range(replicas) for s in range(count)]


def prices(count, *, pod=4.0, leaf=1.0):
    free = (0.0,) * 4
    return Prices(step_s=100.0, chain=((pod, leaf, 0.0, 0.0),) * (count - 1), ring=(free,) * count, wrap=free)


def again(nodes, before, *lost, demands=None, **options):
    count = len(before.assignments)
    topology, left = Topology.of(nodes, levels=LEVELS), [node for node in nodes if node.name not in lost]
    return repair(demands or stages(count), topology, left, before=before, **options)


def chain(placement, replica=0):
    return [each.node for each in placement.assignments if each.replica == replica]


def placed(nodes, demands, **options):
    return place(demands, Topology.of(nodes, levels=LEVELS), nodes, **options)


def busy(nodes, *names):
    return [
        NodeInfo(name=node.name, labels=node.labels, free={GPU: Fraction(0)}) if node.name in names else node
        for node in nodes
    ]


def test_the_nearest_free_node_takes_the_lost_ones_place():
    nodes = cluster(Aa=5, Ab=2, Ba=4)
    before = placed(nodes, stages(4))

    after = again(nodes, before, "Ba1")

    assert chain(before) == ["Ba0", "Ba1", "Ba2", "Ba3"]
    assert [node for node in chain(after) if node in chain(before)] == ["Ba0", "Ba2", "Ba3"]
    assert chain(after)[1].startswith("A")


def test_several_lost_nodes_are_one_problem():
    nodes = cluster(Aa=6, Ab=1, Ac=2)
    before = placed(nodes, stages(6))

    after = again(nodes, before, "Aa2", "Aa3")

    assert chain(after) == ["Aa0", "Aa1", "Ac0", "Ac1", "Aa4", "Aa5"]


def test_no_healthy_stage_moves_unless_it_must():
    nodes = cluster(Aa=3, Ab=4)
    before = placed(busy(nodes, "Ab3"), stages(6))

    after = again(nodes, before, chain(before)[0])

    assert chain(before)[1:] == chain(after)[1:]


def test_stages_shift_by_a_node_where_the_shorter_chain_pays_for_it():
    nodes = cluster(Aa=3, Ab=4)
    before = placed(busy(nodes, "Ab3"), stages(6), prices=prices(6))
    assert chain(before) == ["Aa0", "Aa1", "Aa2", "Ab0", "Ab1", "Ab2"]

    stay = again(nodes, before, "Aa1", prices=prices(6), reload_s=30.0, steps_left=10)
    shift = again(nodes, before, "Aa1", prices=prices(6), reload_s=30.0, steps_left=100)

    assert chain(stay) == ["Aa0", "Ab3", "Aa2", "Ab0", "Ab1", "Ab2"]
    assert chain(shift) == ["Aa0", "Aa2", "Ab3", "Ab0", "Ab1", "Ab2"]
    assert (stay.penalty_s, shift.penalty_s) == (3.0, 1.0)


def test_a_required_level_is_kept():
    nodes = cluster(Aa=4, Ba=4)
    before = placed(nodes, stages(3), scope=TopologyScope(required="leaf"))

    after = again(nodes, before, "Aa1", scope=TopologyScope(required="leaf"))
    whole = again(nodes, before, "Aa1", "Aa2", scope=TopologyScope(required="leaf"))

    assert chain(after) == ["Aa0", "Aa3", "Aa2"]
    assert chain(whole) == ["Ba0", "Ba1", "Ba2"]


def test_other_replicas_stay_where_they_are():
    nodes = cluster(Aa=3, Ab=3, Ac=1)
    demands = stages(3, replicas=2)
    before = placed(nodes, demands)

    after = again(nodes, before, "Aa1", demands=demands)

    assert chain(after, 1) == chain(before, 1) == ["Ab0", "Ab1", "Ab2"]
    assert chain(after) == ["Aa0", "Ac0", "Aa2"]


def test_a_new_member_stands_near_its_ring_where_that_is_the_dearer_link():
    nodes = cluster(Aa=3, Ba=3)
    demands = stages(2, replicas=2)
    rings = replace(prices(2), ring=((9.0, 0.0, 0.0, 0.0), (0.0,) * 4))
    nodes = busy(nodes, "Aa2", "Ba1", "Ba2")
    before = Placement(
        assignments=tuple(
            Assignment(replica=replica, stage=stage, node=node, path=(node[0], node[:2], node))
            for replica, stage, node in ((0, 0, "Aa0"), (0, 1, "Aa1"), (1, 0, "Ab0"), (1, 1, "Ba0"))
        ),
        crossings={},
    )
    more = cluster(Ab=1, Ac=1, Bb=1)

    after = again([*nodes, *more], before, "Ab0", demands=demands, prices=rings)

    assert chain(after) == ["Aa0", "Aa1"]
    assert chain(after, 1) == ["Ac0", "Ba0"]  # not Bb0, which is next to Ba0


def test_nodes_that_are_gone_count_as_lost():
    nodes = cluster(Aa=4)
    before = placed(nodes, stages(3))

    assert chain(again([node for node in nodes if node.name != "Aa1"], before)) == ["Aa0", "Aa3", "Aa2"]


def test_of_a_node_that_others_took_a_part_of_as_many_ranks_keep_theirs_as_there_is_room_for():
    demands = [Demand(replica=0, stage=stage, requests={GPU: 4}) for stage in range(2)]
    nodes = cluster(Aa=2)
    before = placed(nodes, demands)
    assert chain(before) == ["Aa0", "Aa0"]
    halves = [replace(node, free={GPU: Fraction(4)}) for node in nodes]

    assert sorted(chain(again(halves, before, demands=demands))) == ["Aa0", "Aa1"]


def test_unlike_stages_only_go_where_they_may():
    nodes = cluster(Aa=3, Ab=2)
    special = frozenset({"Aa0", "Ab1"})
    demands = [Demand(replica=0, stage=0, requests={GPU: 8}, nodes=special), *stages(3)[1:]]
    before = placed(nodes, demands)
    assert chain(before)[0] == "Aa0"

    assert chain(again(nodes, before, "Aa0", demands=demands)) == ["Ab1", *chain(before)[1:]]


def test_where_nothing_is_free_the_reason_is_told():
    nodes = cluster(Aa=3)
    before = placed(nodes, stages(3))

    with pytest.raises(NoPlacementError, match="the cluster has room for 2; 1 more are missing"):
        again(nodes, before, "Aa1")
