"""Placement by price: no chain is cheaper, none within the threshold leaves more room, and it says what it traded."""

import random
import re
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import permutations, product

import pytest

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.spec.job import TopologyScope
from pipelinejob.spec.network.objective import Objective

GPU = "nvidia.com/gpu"
LEVELS = ["pod", "leaf"]
STEP_S = 5.0


def node(name, *, pod, leaf, gpus=1):
    return NodeInfo(name=name, labels={"pod": pod, "leaf": leaf}, free={GPU: Fraction(gpus)})


def stages(count, *, replicas=1):
    return [Demand(replica=r, stage=s, requests={GPU: 1}) for r in range(replicas) for s in range(count)]


def placed(nodes, demands, **options):
    return place(demands, Topology.of(nodes, levels=LEVELS), nodes, **options)


def leaves(**sizes):
    return [node(f"{leaf}{i}", pod=leaf[0], leaf=leaf) for leaf, size in sizes.items() for i in range(size)]


def flat(count, *, pod, leaf, ring=(0.0, 0.0, 0.0, 0.0), step_s=100.0):
    return Prices(
        step_s=step_s,
        chain=((pod, leaf, 0.0, 0.0),) * (count - 1),
        ring=(ring,) * count,
        wrap=(0.0,) * 4,
    )


# Against every chain there is


def small_cluster(draw):
    places = [(f"p{p}", f"p{p}l{i}") for p in range(draw.randint(1, 2)) for i in range(draw.randint(1, 3))]
    sizes = [draw.randint(1, 3) for _ in places]
    most = draw.choice([1, 3])
    return [
        node(f"n{number}", pod=pod, leaf=leaf, gpus=draw.randint(0, most))
        for number, (pod, leaf) in enumerate(
            each for each, size in zip(places, sizes, strict=True) for _ in range(size)
        )
    ]


def random_prices(draw, count):
    """Draw prices that rise or fall along the chain, as 1F1B's do, or are all alike, and then may be a ring's."""
    by_level = sorted((draw.random() for _ in range(3)), reverse=True)
    shape = draw.choice(["rising", "falling", "flat"])
    weights = {"rising": lambda b: 1 / (count - b), "falling": lambda b: 1 / (b + 1), "flat": lambda _: 1.0}
    wrap = draw.random() * draw.choice([0, 1]) if shape == "flat" else 0.0
    return Prices(
        step_s=STEP_S,
        chain=tuple((*(price * weights[shape](b) for price in by_level), 0.0) for b in range(count - 1)),
        ring=((0.0,) * 4,) * count,
        wrap=(*(price * wrap for price in by_level), 0.0),
    )


def room_left(paths, room, chain):
    left = []
    for depth in (1, 2, 3):
        totals = defaultdict(int)
        for path in paths:
            totals[path[:depth]] += room[path] - chain.count(path)
        left.append(max(totals.values()))
    return tuple(left)


def best_of_all(nodes, count, prices, threshold):
    """Try every chain: give the least price, the most room within the threshold, and the least price that leaves it."""
    paths = [(each.labels["pod"], each.labels["leaf"], each.name) for each in nodes]
    room = {path: int(each.free[GPU]) for path, each in zip(paths, nodes, strict=True)}
    chains = [
        (prices.chain_s(chain), chain)
        for chain in product([path for path in paths if room[path]], repeat=count)
        if all(chain.count(path) <= room[path] for path in set(chain))
    ]
    if not chains:
        return None
    least = min(chains)[0]
    within = ((price, chain) for price, chain in chains if price <= least + threshold * STEP_S + 1e-9)
    rooms = [(room_left(paths, room, chain), -price) for price, chain in within]
    most, price = max(rooms)
    return least, most, -price


@pytest.mark.parametrize("seed", range(60))
def test_no_chain_is_cheaper_and_none_within_the_threshold_leaves_more_room(seed):
    draw = random.Random(seed)
    nodes, count = small_cluster(draw), draw.randint(1, 4)
    prices, threshold = random_prices(draw, count), draw.choice([0.0, 0.01, 0.05, 0.2])
    best = best_of_all(nodes, count, prices, threshold)

    if best is None:
        with pytest.raises(NoPlacementError):
            placed(nodes, stages(count), prices=prices)
        return
    placement = placed(nodes, stages(count), prices=prices, threshold=threshold)
    assert placement.best_penalty_s == pytest.approx(best[0], abs=1e-6 * STEP_S)
    assert tuple(placement.room_left.values()) == best[1]
    assert placement.penalty_s == pytest.approx(best[2], abs=1e-6 * STEP_S)


@pytest.mark.parametrize("seed", range(60))
def test_no_chain_over_nodes_of_several_types_is_cheaper(seed):
    draw = random.Random(seed)
    nodes, count = small_cluster(draw), draw.randint(2, 4)
    nodes = [replace(each, free={GPU: min(each.free[GPU], Fraction(1))}) for each in nodes]
    prices = random_prices(draw, count)
    types = {each.name: draw.choice("xy") for each in nodes}
    allowed = [draw.choice(["x", "y", "xy"]) for _ in range(count)]
    demands = [
        replace(demand, nodes=frozenset(name for name in types if types[name] in kinds))
        for demand, kinds in zip(stages(count), allowed, strict=True)
    ]
    free = [(each.labels["pod"], each.labels["leaf"], each.name) for each in nodes if each.free[GPU]]
    chains = [
        chain
        for chain in permutations(free, count)
        if all(types[path[-1]] in kinds for path, kinds in zip(chain, allowed, strict=True))
    ]

    if not chains:
        with pytest.raises(NoPlacementError):
            placed(nodes, demands, prices=prices)
        return
    placement = placed(nodes, demands, prices=prices, objective=Objective.CHAIN)
    assert placement.penalty_s == pytest.approx(min(map(prices.chain_s, chains)), abs=1e-6 * STEP_S)


# What is weighed


def test_a_chain_is_cut_where_that_costs_least():
    rising = Prices(
        step_s=100.0,
        chain=tuple((4.0, float(boundary + 1), 0.0, 0.0) for boundary in range(7)),
        ring=((0.0,) * 4,) * 8,
        wrap=(0.0,) * 4,
    )

    placement = placed(leaves(Aa=6, Ab=5), stages(8), prices=rising, objective=Objective.CHAIN)

    assert [each.path[1] for each in placement.assignments] == ["Ab", "Ab", *["Aa"] * 6]
    assert placement.penalty_s == 2.0


def test_a_crossing_at_a_coarser_level_is_taken_if_it_is_the_cheaper_way():
    nodes = leaves(Aa=2, Ab=1, Ac=1, Ba=2)

    dear = placed(nodes, stages(4), prices=flat(4, pod=3.0, leaf=1.0), objective=Objective.CHAIN)
    cheap = placed(nodes, stages(4), prices=flat(4, pod=1.5, leaf=1.0), objective=Objective.CHAIN)

    assert (dear.crossings["pod"], dear.penalty_s) == (0, 2.0)
    assert (cheap.crossings["pod"], cheap.penalty_s) == (1, 1.5)


@pytest.mark.parametrize(("threshold", "leaf_room", "penalty_s"), [(0.0, 6, 0.0), (0.009, 6, 0.0), (0.01, 8, 1.0)])
def test_a_longer_step_is_taken_for_room_only_within_the_threshold(threshold, leaf_room, penalty_s):
    nodes = leaves(Aa=8, Ab=6, Ac=4)

    placement = placed(nodes, stages(8), prices=flat(8, pod=5.0, leaf=1.0), threshold=threshold)

    assert (placement.room_left["leaf"], placement.penalty_s) == (leaf_room, penalty_s)
    assert placement.best_penalty_s == 0.0


def test_what_was_traded_is_said_and_nothing_where_nothing_was():
    nodes = leaves(Aa=8, Ab=6, Ac=4)
    prices = flat(8, pod=5.0, leaf=1.0)

    assert placed(nodes, stages(8), prices=prices).trade == (
        "1 % slower than the nearest chain, leaves room for 8 stages in leaf Aa instead of 6"
    )
    assert placed(nodes, stages(8), prices=prices, objective=Objective.CHAIN).trade is None


def test_required_and_preferred_hold_together():
    nodes = leaves(Aa=3, Ab=3, Ba=2, Bb=2)
    prices = flat(3, pod=0.0, leaf=0.0)
    both = TopologyScope(required="pod", preferred="leaf")

    assert placed(nodes, stages(3), prices=prices, scope=both).crossings["leaf"] == 0
    assert placed(nodes, stages(4), prices=flat(4, pod=0.0, leaf=0.0), scope=both).crossings["pod"] == 0


# Pipelines or rings


def test_pipelines_get_the_near_links_where_they_cost_more():
    nodes = leaves(Aa=2, Ab=2, Ac=2, Ad=2)

    placement = placed(
        nodes, stages(2, replicas=2), prices=flat(2, pod=9.0, leaf=5.0, ring=(1.0, 1.0, 0.0, 0.0)), threshold=0.0
    )

    assert placement.crossings["leaf"] == 0
    assert placement.penalty_s == 1.0


def test_rings_get_the_near_links_where_they_cost_more():
    nodes = leaves(Aa=2, Ab=2, Ac=2, Ad=2)

    placement = placed(
        nodes, stages(2, replicas=2), prices=flat(2, pod=9.0, leaf=1.0, ring=(9.0, 5.0, 0.0, 0.0)), threshold=0.0
    )

    by_stage = [{each.path[1] for each in placement.assignments if each.stage == stage} for stage in range(2)]
    assert all(len(leaf) == 1 for leaf in by_stage)
    assert placement.penalty_s == 1.0


def test_members_of_a_ring_stand_at_the_same_place_of_their_nodes():
    nodes = [node(f"n{index}", pod="A", leaf=f"A{index // 2}", gpus=4) for index in range(4)]

    placement = placed(
        nodes, stages(4, replicas=4), prices=flat(4, pod=3.0, leaf=2.0, ring=(2.0, 1.0, 0.5, 0.0)), threshold=0.0
    )

    on = defaultdict(list)
    for each in placement.assignments:
        on[each.node].append(each.stage)
    assert all(stages_there == [0, 1, 2, 3] for stages_there in on.values())


# What would fit


@pytest.mark.parametrize("seed", range(40))
def test_what_is_said_to_fit_now_does_and_nothing_larger(seed):
    draw = random.Random(seed)
    nodes, count, replicas = small_cluster(draw), draw.randint(4, 9), draw.randint(1, 3)
    scope = TopologyScope(required=draw.choice([None, "pod", "leaf"]))
    try:
        placed(nodes, stages(count, replicas=replicas), scope=scope)
    except NoPlacementError as error:
        sentence = str(error)
    else:
        return

    if found := re.search(r"pipeline: (\d+)", sentence):
        fits = int(found[1])
        assert placed(nodes, stages(fits, replicas=replicas), scope=scope)
        if fits + 1 < count:
            with pytest.raises(NoPlacementError):
                placed(nodes, stages(fits + 1, replicas=replicas), scope=scope)
    if found := re.search(r"data: (\d+)", sentence):
        assert placed(nodes, stages(count, replicas=int(found[1])), scope=scope)
    if "pipeline preferred instead of required" in sentence:
        assert placed(nodes, stages(count, replicas=replicas), scope=TopologyScope(preferred=scope.required))
    if "only pod required" in sentence:
        assert placed(nodes, stages(count, replicas=replicas), scope=TopologyScope(required="pod"))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_rings_cost_every_chain_keeps_to_what_is_required(seed):
    draw = random.Random(seed)
    nodes, count, replicas = small_cluster(draw), draw.randint(2, 3), draw.randint(2, 3)
    dear = flat(count, pod=1.0, leaf=0.5, ring=(90.0, 50.0, 0.0, 0.0))
    required = draw.choice(["pod", "leaf"])
    try:
        placement = placed(nodes, stages(count, replicas=replicas), prices=dear, scope=TopologyScope(required=required))
    except NoPlacementError:
        return

    assert placement.crossings[required] == 0


def test_a_preferred_level_comes_before_what_rings_cost():
    nodes = leaves(Aa=2, Ab=2, Ac=2, Ad=2)
    dear = flat(2, pod=9.0, leaf=1.0, ring=(90.0, 50.0, 0.0, 0.0))

    placement = placed(nodes, stages(2, replicas=2), prices=dear, scope=TopologyScope(preferred="leaf"))

    assert placement.crossings["leaf"] == 0
