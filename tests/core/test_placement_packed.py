"""Objective `pack` with several replicas: coarse levels' room first, then the step, then the room of close domains."""

import pytest

from pipelinejob.placement import Objective, place
from placement_fabrics import all_three
from placement_jobs import JobKind, ends_unlike, prices

FABRICS = {fabric.name: fabric for fabric in all_three()}
EIGHT_BY_FOUR = JobKind("PP 8 x DP 4", 8, 4)
SIXTEEN_BY_TWO = JobKind("PP 16 x DP 2, ends unlike", 16, 2, kinds=ends_unlike)


@pytest.mark.parametrize(
    ("name", "job", "seed", "longer_ms", "room"),
    [
        ("rail-optimised", SIXTEEN_BY_TWO, 60, 28.588, (64, 21)),  # the same step in other leaves would leave 18
        ("rail-optimised", SIXTEEN_BY_TWO, 96, 28.588, (64, 21)),  # 19
        ("NVL72", EIGHT_BY_FOUR, 91, 5.282, (69, 13)),  # the shortest step in any block
    ],
)
def test_pack_takes_no_more_of_a_leaf_and_no_longer_step_than_it_must(name, job, seed, longer_ms, room):
    fabric = FABRICS[name]

    placement = place(
        job.demands(fabric),
        fabric.topology,
        fabric.occupied(seed),
        prices=prices(job, fabric),
        objective=Objective.PACK,
    )

    assert placement.penalty_s * 1e3 == pytest.approx(longer_ms, abs=0.001)
    assert tuple(placement.room_left[level.name] for level in fabric.topology.levels[:-1]) == room
