"""Placements against a constraint solver's: no place is better, within a seeded part of what the benchmark certifies.

`tests/bench/placement/bench_placement.py --certify` does the same over all seeds.
"""

from functools import cache

import pytest

from pipelinejob.placement.place import place
from pipelinejob.placement.prices import Prices
from pipelinejob.spec.network.objective import Objective
from support.plans.placement_fabrics import Fabric, small_ones
from support.plans.placement_jobs import JobKind, ends_unlike, prices
from support.plans.placement_oracle import Oracle

FABRICS = {fabric.name: fabric for fabric in small_ones()}
JOBS = {
    "PP 4": JobKind("PP 4", 4),
    "PP 8": JobKind("PP 8", 8),
    "PP 6, ends unlike": JobKind("PP 6, ends unlike", 6, kinds=ends_unlike),
    "PP 4 x DP 2": JobKind("PP 4 x DP 2", 4, 2),
    "PP 3 x DP 3": JobKind("PP 3 x DP 3", 3, 3),
    "PP 6, two a node": JobKind("PP 6, two a node", 6, ranks_per_node=2),
    "PP 4 x DP 2, two a node": JobKind("PP 4 x DP 2, two a node", 4, 2, ranks_per_node=2),
}
THRESHOLD = 0.01
PARTS = 1e-6  # of a step: what the solver's whole numbers round off


@cache
def priced(job: str, fabric: str) -> Prices:
    return prices(JOBS[job], FABRICS[fabric])


def room(placement, fabric: Fabric) -> tuple[int, ...]:
    return tuple(placement.room_left[level.name] for level in fabric.topology.levels[:-1])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", FABRICS)
def test_no_place_has_a_shorter_step_or_leaves_more_room_within_the_threshold(name, job, seed):
    fabric, costs = FABRICS[name], priced(job, name)
    demands, nodes = JOBS[job].demands(fabric), fabric.occupied(seed)
    best = Oracle(demands, fabric.topology, nodes, costs).best(threshold_s=THRESHOLD * costs.step_s)

    auto = place(demands, fabric.topology, nodes, prices=costs, threshold=THRESHOLD)
    chain = place(demands, fabric.topology, nodes, prices=costs, objective=Objective.CHAIN)

    tolerance = PARTS * costs.step_s
    assert chain.penalty_s == pytest.approx(best.least_s, abs=tolerance)
    assert auto.best_penalty_s == pytest.approx(best.least_s, abs=tolerance)
    assert room(auto, fabric) == best.room
    assert auto.penalty_s == pytest.approx(best.penalty_s, abs=tolerance)
