"""The partition over ranks that hold several stages, against every other one there is; and the order among equals."""

import random
from itertools import combinations, pairwise

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.planning.chunks import partition_chunks
from pipelinejob.planning.ties import quickest
from pipelinejob.schedules.actions import folded, looped, straight

SHAPES = {
    "looped": lambda p: (looped(p, 2),),
    "folded": lambda p: (folded(p),),
    "waves": lambda p: (folded(p, 3),),
    "both ends": lambda p: (straight(2 * p), straight(2 * p)[::-1]),
}


def busiest(cuts, costs, routes, speeds):
    loads = [0.0] * len(speeds)
    for route in routes:
        for rank, (first, end) in zip(route, cuts, strict=True):
            loads[rank] += sum(costs[first:end]) / speeds[rank] / len(routes)
    return max(loads)


def least(costs, routes, speeds):
    inner = combinations(range(1, len(costs)), len(routes[0]) - 1)
    return min(busiest(list(pairwise((0, *cuts, len(costs)))), costs, routes, speeds) for cuts in inner)


def problems(shape, costs_of, count=40):
    """Yield costs, routes and speeds, small enough to try all partitions; the same ones each time."""
    draw = random.Random(7)
    for _ in range(count):
        routes = SHAPES[shape](draw.choice([2, 3]) if shape != "both ends" else draw.choice([1, 2]))
        num_layers = draw.randint(len(routes[0]), min(len(routes[0]) + 4, 12))
        yield (
            costs_of(draw, max(num_layers, len(routes[0]))),
            routes,
            [draw.choice([1.0, 1.0, 1.0, 0.6]) for _ in set(routes[0])],
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", [1.0, 4.0])
def test_like_layers_are_shared_as_well_as_can_be(shape, head):
    for costs, routes, speeds in problems(shape, lambda _, n: [1.0] * (n - 1) + [head]):
        cuts = partition_chunks(costs, routes, speeds=speeds)

        assert [first for first, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
        assert busiest(cuts, costs, routes, speeds) == pytest.approx(least(costs, routes, speeds))


@pytest.mark.parametrize("shape", SHAPES)
def test_any_layers_are_shared_nearly_as_well_as_can_be(shape):
    """In four of five cases the optimum; in none a quarter more."""
    excess = [
        busiest(partition_chunks(costs, routes, speeds=speeds), costs, routes, speeds) / least(costs, routes, speeds)
        for costs, routes, speeds in problems(shape, lambda draw, n: [draw.randint(1, 9) for _ in range(n)])
    ]

    assert max(excess) < 5 / 4
    assert sum(each < 1 + 1e-9 for each in excess) >= 0.8 * len(excess)


def test_memory_comes_before_speed():
    """Rank 0 of a V has the first and the last stage; the embedding and the head leave it no room for more."""
    taken = [5, 1, 1, 1, 1, 1, 1, 5]
    memory = [taken, taken]

    free = partition_chunks([1.0] * 8, [folded(2)])
    kept = partition_chunks([1.0] * 8, [folded(2)], memory=memory, memory_limits=[10, 10])

    assert free == ((0, 2), (2, 4), (4, 6), (6, 8))
    assert [kept[0], kept[3]] == [(0, 1), (7, 8)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"costs": [1.0] * 6, "routes": [folded(4)]},
            (
                "4 stages with 2 stretches of layers each cannot share 6 layers; "
                "use at most 3 stages, or a schedule like 1F1B"
            ),
        ),
        (
            {"costs": [1.0] * 4, "routes": [folded(2)], "memory": [[1] * 4] * 2, "memory_limits": [1, 1]},
            "no split of the layers over 2 stages fits into 0.0 GiB a stage; use more stages or smaller micro-batches",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_way_out(arguments, problem):
    with pytest.raises(SpecError) as error:
        partition_chunks(**arguments)

    assert str(error.value) == f"spec.parallelism.pipeline: {problem}"


def test_layers_move_as_long_as_the_step_gets_shorter():
    def seconds(cuts):
        widths = [end - first for first, end in cuts]
        return sum((a - b) ** 2 for a, b in zip(widths, [4, 3, 2, 1], strict=True))

    def found(cuts):
        return quickest(cuts, seconds, allowed=lambda edges: edges[:, 1] <= 4, effort=100)

    assert found(((0, 1), (1, 2), (2, 6), (6, 10))) == ((0, 4), (4, 7), (7, 9), (9, 10))
    assert found(((0, 3), (3, 6), (6, 9), (9, 10))) == ((0, 4), (4, 7), (7, 9), (9, 10))


def test_layers_do_not_move_where_no_partition_will_do():
    cuts = ((0, 5), (5, 6), (6, 9), (9, 10))

    assert quickest(cuts, len, allowed=lambda edges: edges[:, 1] > 9, effort=100) == cuts
