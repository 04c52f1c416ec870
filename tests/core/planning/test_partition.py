"""The partition against every other one there is."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.base.errors import SpecError
from pipelinejob.planning.partition import partition
from support.examples import examples


def widths(cuts):
    return [end - first for first, end in cuts]


def loads(cuts, costs, speeds):
    return [sum(costs[first:end]) / speed for (first, end), speed in zip(cuts, speeds, strict=True)]


def every_partition(num_layers, num_stages):
    for inner in combinations(range(1, num_layers), num_stages - 1):
        yield tuple(pairwise((0, *inner, num_layers)))


@st.composite
def problems(draw):
    costs = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    num_stages = draw(st.integers(1, len(costs)))
    speeds = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=num_stages, max_size=num_stages))
    return costs, num_stages, speeds


@settings(max_examples=examples(200))
@given(problems())
def test_no_partition_has_a_less_busy_busiest_stage_nor_is_more_even(problem):
    costs, num_stages, speeds = problem

    def score(cuts):
        each = loads(cuts, costs, speeds or [1.0] * num_stages)
        return max(each), sum(load**2 for load in each)

    chosen = partition(costs, num_stages, speeds=speeds)

    assert score(chosen) == pytest.approx(min(map(score, every_partition(len(costs), num_stages))))


@settings(max_examples=examples(200))
@given(problems(), st.data())
def test_memory_is_kept_within_wherever_that_is_possible(problem, data):
    costs, num_stages, _ = problem
    memory = [
        data.draw(st.lists(st.integers(0, 5), min_size=len(costs), max_size=len(costs))) for _ in range(num_stages)
    ]
    limits = data.draw(st.lists(st.integers(1, 12), min_size=num_stages, max_size=num_stages))
    fitting = [
        max(loads(cuts, costs, [1.0] * num_stages))
        for cuts in every_partition(len(costs), num_stages)
        if all(sum(memory[i][first:end]) <= limits[i] for i, (first, end) in enumerate(cuts))
    ]

    if fitting:
        chosen = partition(costs, num_stages, memory=memory, memory_limits=limits)
        assert max(loads(chosen, costs, [1.0] * num_stages)) == min(fitting)
        assert all(sum(memory[i][first:end]) <= limits[i] for i, (first, end) in enumerate(chosen))
    else:
        with pytest.raises(SpecError, match="fits into"):
            partition(costs, num_stages, memory=memory, memory_limits=limits)


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "expected"),
    [(6, 4, [1, 1, 2, 2]), (7, 3, [2, 2, 3]), (12, 8, [1, 1, 1, 1, 2, 2, 2, 2]), (96, 8, [12] * 8), (5, 5, [1] * 5)],
)
@pytest.mark.parametrize("cost", [1.0, 0.1, 1 / 3])
def test_like_layers_are_shared_evenly_the_larger_stages_last(num_layers, num_stages, expected, cost):
    assert widths(partition([cost] * num_layers, num_stages)) == expected


def test_a_heavy_head_gets_a_stage_with_fewer_layers():
    # 96 blocks and a head worth four more: 13 is the least that the busiest of 8 stages can have.
    chosen = partition([1.0] * 96 + [4.0], 8)

    assert max(loads(chosen, [1.0] * 96 + [4.0], [1.0] * 8)) == 13
    assert widths(chosen)[-1] == 10


def test_a_slow_device_gets_fewer_layers():
    assert widths(partition([1.0] * 10, 4, speeds=[1.0, 1.0, 0.5, 1.0])) == [3, 3, 1, 3]


def test_more_stages_than_layers_are_refused_with_the_way_out():
    with pytest.raises(SpecError) as error:
        partition([1.0] * 6, 8)

    assert str(error.value) == "spec.parallelism.pipeline: 8 stages cannot share 6 layers; use at most 6"


def test_a_thousand_stages_are_cut_at_once():
    assert widths(partition([1.0] * 4096, 1024)) == [4] * 1024
