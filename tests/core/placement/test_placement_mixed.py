"""Unlike stages: nodes by what they can take, the runs that leaves can take, and what chains come of them."""

from collections import Counter
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Capacity, Demand
from pipelinejob.placement.mixed_chain.contents import FULL, Contents
from pipelinejob.placement.mixed_chain.leaves import leaves_of
from pipelinejob.placement.mixed_chain.placer import MixedChain
from pipelinejob.placement.mixed_chain.runs import Runs
from pipelinejob.placement.mixed_chain.stage_kinds import StageKinds
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import crossing_prices

GPU = "nvidia.com/gpu"


def node(name, leaf="l0", *, gpus=8):
    return NodeInfo(name=name, labels={"leaf": leaf}, free={GPU: Fraction(gpus)})


def chain(*stages):
    """Return stages by their GPUs and the nodes that they may go to."""
    return [
        Demand(replica=0, stage=number, requests={GPU: Fraction(gpus)}, nodes=nodes and frozenset(nodes))
        for number, (gpus, nodes) in enumerate(stages)
    ]


def known(nodes, demands):
    """Return the leaves, what their nodes can take, and the runs."""
    contents = Contents(StageKinds(demands))
    leaves = leaves_of(Topology.of(nodes, levels=["leaf"]), Capacity(nodes), contents)
    return leaves, contents, Runs(contents)


def placer(nodes, demands):
    topology = Topology.of(nodes, levels=["leaf"])
    return MixedChain(topology, demands, Capacity(nodes), crossing_prices(len(demands), 2))


# What nodes can take


def test_nodes_that_can_take_the_same_are_one_content():
    nodes = [node("a"), node("b"), node("c"), node("busy", gpus=0)]
    (leaf,), contents, _ = known(nodes, chain((8, "ab"), (8, ["c"])))

    assert [path[-1] for path in leaf.nodes] == ["a", "b", "c"]
    assert [contents.counts[content] for content, _ in leaf.stock] == [(1, 0), (0, 1)]
    assert [number for _, number in leaf.stock] == [2, 1]


def test_parts_of_a_device_are_counted_exactly():
    _, contents, _ = known([node("a", gpus=1)], chain((Fraction(1, 3), None), (Fraction(1, 2), None)))
    whole = contents.of(contents.asked.left({GPU: Fraction(1)}), (0, 1))
    after_a_third = contents.after(whole, 0)
    after_both = contents.after(after_a_third, 1)

    assert contents.counts[whole] == (2, 2)  # no more than there are stages
    assert contents.counts[after_a_third] == (1, 1)
    assert after_both == FULL


def test_a_node_that_has_given_more_than_it_has_takes_what_asks_for_none_of_that():
    frugal = Demand(replica=0, stage=0, requests={"cpu": 1})
    asked = StageKinds([frugal, Demand(replica=0, stage=1, requests={GPU: Fraction(8)})])

    assert asked.counts(asked.left({GPU: Fraction(-8), "cpu": Fraction(2)})) == (2, 0)


def test_a_limited_node_takes_no_more_than_its_limit():
    (leaf,), contents, _ = known([node("a"), node("b")], chain((1, None), (2, None), (1, None)))
    limited = leaf.limited({("l0", "a"): 1, ("l0", "b"): 0, ("l1", "c"): 0}, contents)

    assert contents.counts[limited.nodes["l0", "a"]] == (1, 1)
    assert limited.nodes["l0", "b"] == FULL
    assert leaf.limited({("l1", "c"): 0}, contents) is leaf


# Runs


@st.composite
def leaves_and_stages(draw):
    """Draw a leaf of up to five nodes that each take one stage, and stages with the nodes that each may go to."""
    names = "abcde"[: draw(st.integers(1, 5))]
    types = [draw(st.sets(st.sampled_from(names), min_size=1)) for _ in range(draw(st.integers(2, 3)))]
    return names, [draw(st.sampled_from(types)) for _ in range(draw(st.integers(1, 5)))]


@given(leaves_and_stages())
def test_a_run_is_as_long_as_stages_find_a_node_each(drawn):
    names, allowed = drawn
    (leaf,), _, runs = known([node(name) for name in names], chain(*((8, nodes) for nodes in allowed)))
    found = runs.of(leaf.stock, 0)
    lengths = (
        length
        for length in range(min(len(names), len(allowed)), -1, -1)
        if any(
            all(name in nodes for name, nodes in zip(chosen, allowed, strict=False))
            for chosen in permutations(names, length)
        )
    )

    assert max(map(len, found), default=0) == next(lengths)


def test_stages_that_are_less_choosy_move_aside():
    (leaf,), contents, runs = known([node("a"), node("b"), node("c")], chain((8, "ab"), (8, "bc"), (8, "b")))
    (run,) = runs.of(leaf.stock, 0)

    takes = [contents.counts[content] for content, _ in run]
    assert takes == [(1, 0, 0), (0, 1, 0), (1, 1, 1)]


def test_a_run_that_is_cut_off_leaves_the_nodes_of_most_use():
    (leaf,), contents, runs = known([node("a"), node("b")], chain((8, "ab"), (8, "ab"), (8, "a")))
    (run,) = runs.of(leaf.stock, 0)
    (left,) = runs.rest(leaf.stock, 0, run[:1])

    assert contents.counts[left[0]] == (1, 1)


def test_leaves_that_hold_the_same_have_the_same_runs():
    nodes = [node(f"{leaf}-{index}", leaf) for leaf in ("l0", "l1", "l2") for index in range(2 + (leaf == "l2"))]
    (one, same, other), _, runs = known(nodes, chain((8, None), (4, None), (8, None)))

    assert runs.of(one.stock, 0) is runs.of(same.stock, 0)
    assert len(runs.of(one.stock, 0)[0]) < len(runs.of(other.stock, 0)[0])


# Chains


def test_nodes_are_named_in_order_and_each_for_one_stage():
    nodes = [node(name, leaf) for leaf, names in (("l0", "dca"), ("l1", "b")) for name in names]
    found = placer(nodes, chain((8, "acd"), (8, "acd"), (8, "b"), (8, "acd"))).least(depth=0)

    assert found is not None
    assert [path[-1] for path in found.paths] == ["a", "c", "b", "d"]


def test_stages_share_a_node_while_it_has_room():
    found = placer([node("a"), node("b")], chain((4, None), (2, None), (6, None), (2, None))).least(depth=0)

    assert found is not None
    assert Counter(path[-1] for path in found.paths) == {"a": 2, "b": 2}
    assert found.cost == 1.0


def test_a_domain_takes_no_more_than_its_limit():
    nodes = [node(name, leaf) for leaf, names in (("l0", "abc"), ("l1", "de")) for name in names]
    stages = placer(nodes, chain((8, None), (8, "abd"), (8, None)))
    unlimited, limited = stages.least(depth=0), stages.least(depth=0, limits={("l0",): 1})

    assert unlimited is not None
    assert limited is not None
    assert unlimited.taken(1) == {("l0",): 3}
    assert limited.taken(1) == {("l0",): 1, ("l1",): 2}


def test_what_a_thousand_nodes_can_take_is_reckoned_a_few_times():
    nodes = [node(f"n{index:04}", f"l{index // 32:02}", gpus=8 * (index % 3 > 0)) for index in range(1024)]
    even = [each.name for each in nodes[::2]]
    demands = chain(*[(8, even)] * 32, *[(8, [each.name for each in nodes[1::2]])] * 32)
    leaves, contents, _ = known(nodes, demands)

    assert len(leaves) == 32
    assert len({leaf.stock for leaf in leaves}) <= 3
    assert len(contents.counts) == 3  # of each type those with room, and those without any
    # A leaf takes eleven of a half at most: each half stands in three leaves, and one of them is
    # both halves'.
    assert place(demands, Topology.of(nodes, levels=["leaf"]), nodes).crossings == {"leaf": 4, "node": 63}


@pytest.mark.parametrize("gpus", [8, 4])
def test_the_order_of_nodes_does_not_matter(gpus):
    nodes = [node(f"n{index:02}", f"l{index % 3}", gpus=8 - 4 * (index % 2)) for index in range(24)]
    demands = chain(*[(gpus, [each.name for each in nodes[::2]]), (4, [each.name for each in nodes[:15]])] * 4)

    assert placer(nodes, demands).least(depth=0).paths == placer(nodes[::-1], demands).least(depth=0).paths
