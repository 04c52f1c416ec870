"""The picture of a fabric: what is opened, what is collapsed, and the chain on it."""

import re

from pipelinejob.contract.plan import Assignment, Placement
from pipelinejob_operator.report.fabric_view import FabricView, NodeView
from pipelinejob_operator.report.pictures.fabric import crossings_by_class, fabric_picture

LEVELS = ("spine", "leaf", "node")


def fabric(*, spines=2, leaves=2, nodes=4, busy=frozenset()):
    names = [
        (f"s{s}", f"s{s}-l{leaf}", f"s{s}-l{leaf}-n{n}")
        for s in range(spines)
        for leaf in range(leaves)
        for n in range(nodes)
    ]
    views = (NodeView(name=path[-1], path=path, capacity=8, free=0 if path[-1] in busy else 8) for path in names)
    return FabricView(levels=LEVELS, nodes=tuple(views), resource="nvidia.com/gpu")


def chain(*nodes, replica=0):
    return tuple(
        Assignment(replica=replica, stage=stage, node=node, path=(node[:2], node[:5], node))
        for stage, node in enumerate(nodes)
    )


def placed(view, *assignments):
    return view.holding(Placement(assignments=assignments, crossings={}))


def cells(picture):
    return len(re.findall(r'class="cell', picture))


def test_a_small_fabric_is_shown_whole():
    picture = fabric_picture(fabric(busy={"s0-l0-n0"}))

    assert cells(picture) == 16
    assert picture.count('class="cell busy"') == 1
    assert "s0-l0 · 3 of 4 free" in picture


def test_of_a_large_fabric_only_what_is_used_is_opened():
    view = placed(fabric(spines=8, leaves=8, nodes=16), *chain("s3-l2-n0", "s3-l2-n1"))

    picture = fabric_picture(view)

    assert cells(picture) == 16  # of 1,024
    assert "s3-l2 · 16 of 16 free" in picture
    assert "s3-l3 · 16 of 16 free" in picture  # beside it, as a chip
    assert "s4 · 128 of 128 free" in picture
    assert "s4-l0" not in picture


def test_many_unused_domains_are_told_together():
    view = placed(fabric(spines=40, leaves=1, nodes=8), *chain("s3-l0-n0"))

    assert "and 21 more · 168 of 168 free" in fabric_picture(view)


def test_boundaries_are_coloured_by_the_coarsest_level_that_they_cross():
    view = placed(fabric(), *chain("s0-l0-n0", "s0-l0-n1", "s0-l1-n0", "s1-l0-n0", "s1-l0-n0"))

    picture = fabric_picture(view)

    assert [picture.count(f'class="chain {style}"') for style in ("near", "far", "farther")] == [1, 1, 1]
    assert crossings_by_class(view) == [("farther", "spine", 1), ("far", "leaf", 1), ("near", "node", 1)]
    assert "stage 2 to 3 of replica 0\ncrosses a spine" in picture


def test_a_node_says_which_stages_it_holds():
    ranks = [chain("s0-l0-n0", "s0-l0-n0", replica=replica) for replica in (0, 1)]
    view = placed(fabric(), *ranks[0], *ranks[1], *chain(*["s0-l0-n1"] * 3, replica=2))

    picture = fabric_picture(view)

    assert ">0–1 ×2<" in picture  # two replicas of both
    assert ">2·0–2<" in picture  # one replica, which is not the first


def test_the_chain_is_read_from_left_to_right():
    view = placed(fabric(), *chain("s1-l1-n3", "s1-l1-n0", "s0-l0-n2"))

    picture = fabric_picture(view)

    assert picture.index("s1 · ") < picture.index("s0 · ")
    assert picture.index("s1/s1-l1/s1-l1-n3") < picture.index("s1/s1-l1/s1-l1-n0")
