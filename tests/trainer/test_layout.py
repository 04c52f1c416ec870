"""Which layers stand on which ranks, and who speaks for those that stand on several."""

from pipelinejob.schedules.actions import Route, Schedule
from pipelinejob_trainer.layout import Layout


def layout(*routes: Route, cuts: tuple[tuple[int, int], ...]) -> Layout:
    return Layout(Schedule(routes=routes, route_of=(0,), ranks=((),) * (max(routes[0]) + 1)), cuts)


def test_a_rank_of_a_v_holds_the_stages_of_both_legs() -> None:
    v = layout((0, 1, 1, 0), cuts=((0, 1), (1, 3), (3, 4), (4, 6)))

    assert v.stretches(0) == ((0, 1), (4, 6))
    assert v.stretches(1) == ((1, 3), (3, 4))
    assert [v.owner_of(f"layers.{layer}.weight") for layer in range(6)] == [0, 1, 1, 1, 0, 0]


def test_a_layer_of_two_routes_stands_on_two_ranks_and_the_first_route_speaks() -> None:
    both_ways = layout((0, 1), (1, 0), cuts=((0, 2), (2, 4)))

    assert both_ways.stretches(1) == ((2, 4), (0, 2))
    assert both_ways.ranks_of(0) == both_ways.ranks_of(3) == {0, 1}
    assert both_ways.owner_of("layers.1.weight") == 0
    assert both_ways.owner_of("layers.2.weight") == 1


def test_a_shared_parameter_stands_wherever_one_of_its_layers_does() -> None:
    straight = layout((0, 1, 2), cuts=((0, 1), (1, 2), (2, 4)))
    shared = {"layers.0.token.weight": (0, 3)}

    assert straight.holders("layers.0.token.weight", shared) == {0, 2}
    assert straight.holders("layers.0.position.weight", shared) == {0}
    assert straight.owner_of("layers.0.token.weight") == 0
