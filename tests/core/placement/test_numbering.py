"""Pods that another scheduler put somewhere are numbered along the network."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.numbering import BoundPod, number
from pipelinejob.placement.prices import Prices, crossing_prices

LEVELS = ("pod", "leaf")


def fabric(*leaves, pods=1):
    """Return nodes in leaves of these sizes, the leaves in so many pods."""
    return [
        NodeInfo(name=f"n{leaf}-{index}", labels={"pod": f"p{leaf * pods // len(leaves)}", "leaf": f"l{leaf}"})
        for leaf, size in enumerate(leaves)
        for index in range(size)
    ]


def topology(nodes):
    return Topology.of(nodes, levels=LEVELS)


def bound(nodes, *, shapes=None, names=None):
    """Return a pod on each of these nodes."""
    return [
        BoundPod(
            name=(names or (lambda index: f"pod-{index:03}"))(index),
            shape=(shapes or "a" * len(nodes))[index],
            node=node,
        )
        for index, node in enumerate(nodes)
    ]


def ranks(*, pipeline, data=1, shapes=None):
    return {(r, s): (shapes or "a" * pipeline)[s] for r in range(data) for s in range(pipeline)}


def numbered(shapes, pods, nodes, **more):
    found = number(shapes, pods, topology(nodes), nodes, **more)
    taken = [node for node in nodes if node.name in {pod.node for pod in pods}]
    assert number(shapes, pods, topology(nodes), taken, **more) == found, "the other nodes change nothing"
    where = {pod.name: pod for pod in pods}
    assert sorted(found.pods.values()) == sorted(where), "every pod is one rank"
    for each in found.placement.assignments:
        pod = where[found.pods[each.replica, each.stage]]
        assert (pod.node, pod.shape) == (each.node, shapes[each.replica, each.stage])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_crossings_fall_to_the_leaves_in_use_less_one(seed):
    nodes = fabric(11, 8, 6, 6, 5, 3, 2, 6, 5, 3, 3, 2, 2, 1, 1)  # the anchors' uneven fabric: 64 nodes
    chosen = random.Random(seed).sample([node.name for node in nodes], 16)
    leaves = {name.split("-")[0] for name in chosen}

    found = numbered(ranks(pipeline=16), bound(chosen), nodes)

    assert found.placement.crossings["leaf"] == len(leaves) - 1


def test_every_level_crosses_as_seldom_as_it_can():
    nodes = fabric(2, 2, 2, 2, pods=2)
    names = [node.name for node in nodes]
    random.Random(3).shuffle(names)

    found = numbered(ranks(pipeline=8), bound(names), nodes)

    assert found.placement.crossings == {"pod": 1, "leaf": 3, "node": 7}


def test_pods_that_share_a_node_are_neighbours():
    nodes = fabric(2, 1)
    pods = bound(["n0-0", "n1-0", "n0-1", "n0-0", "n1-0", "n0-1"])

    found = numbered(ranks(pipeline=6), pods, nodes)

    assert found.placement.crossings == {"pod": 0, "leaf": 1, "node": 2}


def test_a_rank_goes_only_to_a_pod_that_was_made_for_a_stage_like_its_own():
    nodes = fabric(3, 3)
    pods = bound(["n1-2", "n0-0", "n1-0", "n0-1", "n0-2", "n1-1"], shapes="eabbab")
    shapes = ranks(pipeline=6, shapes="eaabbb")

    found = numbered(shapes, pods, nodes)

    assert found.placement.crossings["leaf"] == 2  # e and both a's must be in three stretches: l1, l0, l1


def test_replicas_are_numbered_one_after_the_other():
    nodes = fabric(4, 4)
    names = [node.name for node in nodes]
    random.Random(0).shuffle(names)

    found = numbered(ranks(pipeline=4, data=2), bound(names), nodes)

    assert found.placement.crossings["leaf"] == 0


def test_prices_decide_between_near_stages_and_near_replicas():
    nodes = fabric(2, 2)
    free, dear = (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0)
    rings_matter = Prices(step_s=1.0, chain=(free,), ring=(dear, dear), wrap=free)

    found = numbered(ranks(pipeline=2, data=2), bound([node.name for node in nodes]), nodes, prices=rings_matter)

    leaves = {(each.replica, each.stage): each.path[1] for each in found.placement.assignments}
    assert leaves[0, 0] == leaves[1, 0]
    assert leaves[0, 1] == leaves[1, 1]
    assert found.placement.penalty_s == 0


def test_a_node_that_is_cordoned_meanwhile_still_counts():
    nodes = [NodeInfo(name="a", labels={"leaf": "l"}, unusable="is cordoned"), NodeInfo(name="b", labels={"leaf": "l"})]

    found = numbered(ranks(pipeline=2), bound(["b", "a"]), nodes)

    assert {each.node for each in found.placement.assignments} == {"a", "b"}


def test_what_is_left_beside_the_pods_is_not_said():
    nodes = fabric(4)

    found = numbered(ranks(pipeline=2), bound(["n0-0", "n0-1"]), nodes)

    assert found.placement.room_left == {}


@given(st.data())
def test_no_other_numbering_of_one_chain_crosses_less(data):
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    nodes = fabric(*sizes, pods=2)
    count = data.draw(st.integers(2, min(6, len(nodes))))
    names = data.draw(st.permutations([node.name for node in nodes]))[:count]
    shapes = "".join(data.draw(st.lists(st.sampled_from("ab"), min_size=count, max_size=count)))
    order = data.draw(st.permutations(shapes))
    prices = crossing_prices(count, 3)

    found = numbered(ranks(pipeline=count, shapes=order), bound(names, shapes=shapes), nodes)

    paths = topology(nodes).paths
    cost = prices.chain_s([paths[each.node] for each in found.placement.assignments])
    pods = list(zip(names, shapes, strict=True))
    ways = (way for way in itertools.permutations(pods) if [shape for _, shape in way] == list(order))
    assert cost == pytest.approx(min(prices.chain_s([paths[node] for node, _ in way]) for way in ways))
