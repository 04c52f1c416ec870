"""Placement: never more than a node has, all or none, and no chain that crosses less on small trees."""

import random
import time
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise, product

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.fabric.topology import Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from support.examples import examples
from support.plans.gpu_nodes import GPU, LEAF, POD, gpu_node, placed, refusal, stages

# A fabric in use at a GPU cloud: 64 nodes, two superpods, fifteen leaves of unlike size.
UNEVEN = {"A": [11, 8, 6, 6, 5, 3, 2], "B": [6, 5, 3, 3, 2, 2, 1, 1]}


def uneven_fabric(*, busy=frozenset()):
    places = [
        (pod, f"{pod}-leaf-{index}")
        for pod, sizes in UNEVEN.items()
        for index, size in enumerate(sizes)
        for _ in range(size)
    ]
    names = [f"gpu-{index:03d}" for index in range(len(places))]
    random.Random(1).shuffle(names)
    return [
        gpu_node(name, pod=pod, leaf=leaf, gpus=0 if name in busy else 8)
        for name, (pod, leaf) in zip(names, places, strict=True)
    ]  # fmt: skip


def used(placement, demands):
    taken = defaultdict(lambda: defaultdict(Fraction))
    requests = {(demand.replica, demand.stage): demand.requests for demand in demands}
    for each in placement.assignments:
        for resource, amount in requests[each.replica, each.stage].items():
            taken[each.node][resource] += amount
    return taken


# The uneven fabric


def test_sixteen_stages_cross_one_leaf_on_the_empty_fabric():
    assert placed(stages(16), uneven_fabric()).crossings == {"superpod": 0, "leaf": 1, "node": 15}


def test_eight_stages_take_the_smallest_leaf_that_holds_them():
    placement = placed(stages(8), uneven_fabric())

    assert placement.crossings == {"superpod": 0, "leaf": 0, "node": 7}
    assert {each.path[1] for each in placement.assignments} == {"A-leaf-1"}


def eight_occupancies():
    names = sorted(node.name for node in uneven_fabric())
    for seed in range(8):
        yield uneven_fabric(busy=frozenset(random.Random(seed).sample(names, 24)))


def test_twelve_stages_cross_a_leaf_one_and_a_half_times_on_average_on_a_busy_fabric():
    crossed = [placed(stages(12), nodes).crossings for nodes in eight_occupancies()]

    assert sum(each["leaf"] for each in crossed) / 8 == 1.5
    assert sum(each["superpod"] for each in crossed) == 0


def test_unlike_first_and_last_stages_cross_no_more():
    demands = [Demand(replica=0, stage=stage, requests={GPU: 4 if stage in (0, 11) else 8}) for stage in range(12)]

    assert sum(placed(demands, nodes).crossings["leaf"] for nodes in eight_occupancies()) / 8 <= 1.5


def test_stages_of_half_a_node_pair_up_on_nodes():
    assert placed(stages(12, gpus=4), uneven_fabric()).crossings == {"superpod": 0, "leaf": 0, "node": 5}


def test_each_replica_gets_a_leaf_of_its_own():
    placement = placed(stages(6, replicas=4), uneven_fabric())

    assert placement.crossings == {"superpod": 0, "leaf": 0, "node": 20}


def test_neighbours_stand_side_by_side_and_the_path_names_their_domains():
    placement = placed(stages(16), uneven_fabric())

    assert [each.stage for each in placement.assignments] == list(range(16))
    assert all(each.path[-1] == each.node for each in placement.assignments)
    assert sum(one.path[1] != other.path[1] for one, other in pairwise(placement.assignments)) == 1


def test_the_same_question_has_the_same_answer_whatever_the_order():
    nodes, demands = uneven_fabric(), stages(12)

    assert placed(demands, nodes) == placed(demands[::-1], sorted(nodes, key=lambda node: node.labels[LEAF]))


def test_a_required_level_holds_for_each_replica():
    placement = placed(stages(5, replicas=5), uneven_fabric(), required="leaf")

    assert placement.crossings["leaf"] == 0


def test_a_required_node_takes_the_whole_chain():
    placement = placed(stages(4, gpus=2), uneven_fabric(), required="node")

    assert len({each.node for each in placement.assignments}) == 1


def test_a_preferred_level_is_kept_where_possible_and_given_up_where_not():
    assert placed(stages(11), uneven_fabric(), preferred="leaf").crossings["leaf"] == 0
    assert placed(stages(12), uneven_fabric(), preferred="leaf").crossings["leaf"] == 1


# What must hold of every placement


@st.composite
def small_clusters(draw):
    sizes = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=2))
    places = [
        (f"p{p}", f"p{p}l{i}") for p, leaves in enumerate(sizes) for i, size in enumerate(leaves) for _ in range(size)
    ]
    free = draw(st.lists(st.integers(0, 3), min_size=len(places), max_size=len(places)))
    return [
        gpu_node(f"n{index}", pod=pod, leaf=leaf, gpus=gpus)
        for index, ((pod, leaf), gpus) in enumerate(zip(places, free, strict=True))
    ]


def fewest_crossings(count, nodes):
    """Try every chain: for each order of domains there is, and every way to fill them."""
    paths = [(node.labels[POD], node.labels[LEAF], node.name) for node in nodes]
    room = {path: int(node.free[GPU]) for path, node in zip(paths, nodes, strict=True)}
    best = None
    for chain in product(paths, repeat=count):
        if all(chain.count(path) <= room[path] for path in set(chain)):
            crossed = tuple(
                sum(one[: level + 1] != other[: level + 1] for one, other in pairwise(chain)) for level in range(3)
            )
            best = crossed if best is None else min(best, crossed)
    return best


@settings(max_examples=examples(60), deadline=None)
@given(nodes=small_clusters(), count=st.integers(1, 4))
def test_no_chain_of_like_stages_crosses_less(nodes, count):
    assume(len(nodes) <= 8)
    best = fewest_crossings(count, nodes)

    if best is None:
        refusal(stages(count, gpus=1), nodes)
    else:
        assert tuple(placed(stages(count, gpus=1), nodes).crossings.values()) == best


@settings(max_examples=examples(100), deadline=None)
@given(
    nodes=small_clusters(),
    count=st.integers(1, 4),
    replicas=st.integers(1, 3),
    level=st.sampled_from(["superpod", "leaf"]),
)
def test_like_replicas_fit_exactly_when_their_domains_have_room(nodes, count, replicas, level):
    rooms = defaultdict(int)
    for node in nodes:
        rooms[node.labels[{"superpod": POD, "leaf": LEAF}[level]]] += int(node.free[GPU])
    demands = stages(count, gpus=1, replicas=replicas)

    if sum(room // count for room in rooms.values()) >= replicas:
        assert placed(demands, nodes, required=level).crossings[level] == 0
    else:
        refusal(demands, nodes, required=level)


@st.composite
def any_demands(draw, nodes):
    names = [node.name for node in nodes]
    allowed = st.none() | st.frozensets(st.sampled_from(names), min_size=1)
    num_replicas, num_stages = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    return [
        Demand(replica=replica, stage=stage, requests={GPU: draw(st.integers(0, 3))}, nodes=draw(allowed))
        for replica in range(num_replicas)
        for stage in range(num_stages)
    ]


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data(), nodes=small_clusters(), level=st.sampled_from([None, "superpod", "leaf", "node"]))
def test_no_node_is_overcommitted_and_every_rank_or_none_is_placed(data, nodes, level):
    demands = data.draw(any_demands(nodes))
    try:
        placement = placed(demands, nodes, required=level)
    except NoPlacementError:
        return

    assert sorted((each.replica, each.stage) for each in placement.assignments) == sorted(
        (demand.replica, demand.stage) for demand in demands
    )
    taken, free = used(placement, demands), {node.name: node.free[GPU] for node in nodes}
    assert all(taken[name][GPU] <= free[name] for name in taken)
    allowed = {(demand.replica, demand.stage): demand.nodes for demand in demands}
    assert all(
        allowed[each.replica, each.stage] is None or each.node in allowed[each.replica, each.stage]
        for each in placement.assignments
    )
    if level is not None:
        assert placement.crossings[level] == 0


@settings(max_examples=examples(100), deadline=None)
@given(data=st.data(), nodes=small_clusters())
def test_unlike_stages_find_a_place_if_there_is_one(data, nodes):
    demands = [demand for demand in data.draw(any_demands(nodes)) if demand.replica == 0]
    assume(len(nodes) ** len(demands) <= 10_000)

    def holds(names):
        taken = defaultdict(int)
        for demand, name in zip(demands, names, strict=True):
            taken[name] += demand.requests[GPU]
        return all(taken[node.name] <= node.free[GPU] for node in nodes) and all(
            demand.nodes is None or name in demand.nodes for demand, name in zip(demands, names, strict=True)
        )

    if any(holds(names) for names in product([node.name for node in nodes], repeat=len(demands))):
        assert len(placed(demands, nodes).assignments) == len(demands)
    else:
        refusal(demands, nodes)


def test_a_thousand_nodes_are_placed_on_at_once():
    nodes = [
        gpu_node(f"n{index:04d}", pod=str(index // 128), leaf=str(index // (10 + index % 7))) for index in range(1024)
    ]
    topology = Topology.of(nodes)

    began = time.process_time()
    placement = place(stages(32), topology, nodes)

    assert len(placement.assignments) == 32
    assert time.process_time() - began < 1
