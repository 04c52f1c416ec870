"""Several replicas in the room that there is: no step longer and no room smaller than another layout shows possible."""

from fractions import Fraction

import pytest

from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.spec.network.objective import Objective
from support.plans.placement_fabrics import all_three
from support.plans.placement_jobs import JobKind, ends_unlike, prices

GPU = "nvidia.com/gpu"
FABRICS = {fabric.name: fabric for fabric in all_three()}
EIGHT_BY_FOUR = JobKind("PP 8 x DP 4", 8, 4)
SIXTEEN_BY_TWO = JobKind("PP 16 x DP 2, ends unlike", 16, 2, kinds=ends_unlike)
TWO_BY_SIXTEEN = JobKind("PP 2 x DP 16", 2, 16)
TWELVE_BY_THREE = JobKind("PP 12 x DP 3", 12, 3)


def nodes_in(**leaves):
    """Return nodes of one GPU by their leaf, whose first letter is its pod."""
    return [
        NodeInfo(name=f"{leaf}{number}", labels={"pod": leaf[0], "leaf": leaf}, free={GPU: Fraction(1)})
        for leaf, size in leaves.items()
        for number in range(size)
    ]


def placed(nodes, *, stages, replicas, objective, boundary_s=0.0, ring_s=0.0):
    """Place a job whose boundaries, and rings, cost so much where they cross a leaf, and ten times that where a pod."""
    demands = [Demand(replica=r, stage=s, requests={GPU: 1}) for r in range(replicas) for s in range(stages)]
    costs = Prices(
        step_s=100.0,
        chain=((10 * boundary_s, boundary_s, 0.0, 0.0),) * (stages - 1),
        ring=((10 * ring_s, ring_s, 0.0, 0.0),) * stages,
        wrap=(0.0,) * 4,
    )
    return place(demands, Topology.of(nodes, levels=["pod", "leaf"]), nodes, prices=costs, objective=objective)


def test_rings_leave_the_larger_pod_to_others_when_packed():
    nodes = nodes_in(Aa=20, Ab=20, Ba=10, Bb=10, Bc=10)  # two rings in each of A's leaves, one in each of B's

    placement = placed(nodes, stages=3, replicas=9, ring_s=1.0, boundary_s=0.1, objective=Objective.PACK)

    assert placement.room_left["pod"] == 40
    assert placement.penalty_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "job", "seed", "objective", "best"),
    [
        # In other leaves the same step, but for rounding, would leave 18 and 19 there.
        ("rail-optimised", SIXTEEN_BY_TWO, 60, Objective.PACK, (28.589, (64, 21))),
        ("rail-optimised", SIXTEEN_BY_TWO, 96, Objective.PACK, (28.589, (64, 21))),
        # Chain by chain 16.8 ms in this block; 5.282 is the least in any.
        ("NVL72", EIGHT_BY_FOUR, 91, Objective.PACK, (5.282, (69, 13))),
        # The pod that has room for two rings of 16 and no more.
        ("rail-optimised", TWO_BY_SIXTEEN, 151, Objective.PACK, (65.691, (67, 22))),
        ("rail-optimised", TWO_BY_SIXTEEN, 151, Objective.CHAIN, (65.691, (67, 22))),
        # One ring in the one leaf that holds it, the other over two leaves.
        ("uneven leaf-spine", TWO_BY_SIXTEEN, 112, Objective.CHAIN, (138.167, (39, 12))),
        # Cuts where they are cheap: 3.5 ms more with leaves in the order of their rooms.
        ("uneven leaf-spine", TWELVE_BY_THREE, 104, Objective.CHAIN, (57.360, (35, 9))),
    ],
)
def test_replicas_take_no_longer_step_and_no_more_room_than_they_must(name, job, seed, objective, best):
    fabric, (longer_ms, room) = FABRICS[name], best

    placement = place(
        job.demands(fabric), fabric.topology, fabric.occupied(seed), prices=prices(job, fabric), objective=objective
    )

    assert placement.penalty_s * 1e3 == pytest.approx(longer_ms, abs=0.001)
    assert tuple(placement.room_left[level.name] for level in fabric.topology.levels[:-1]) == room
