"""Which layers stand on which ranks, and who speaks for those that stand on several."""

from pipelinejob.schedules.actions import Route, Schedule
from pipelinejob.spec.job import Data, GptModel, Model
from pipelinejob_trainer.models.part import Part, build_part
from pipelinejob_trainer.runtime.layout import Layout
from pipelinejob_trainer.runtime.reduction import Share

MODEL = Model(gpt=GptModel(num_layers=2, hidden_size=8, num_heads=1))


def layout(*routes: Route, cuts: tuple[tuple[int, int], ...]) -> Layout:
    schedule = Schedule(routes=routes, route_of=(0,), ranks=((),) * (max(routes[0]) + 1))
    return Layout(schedule=schedule, cuts=cuts, num_replicas=2)


def part(model: Model, *stretches: tuple[int, int]) -> Part:
    return build_part(model, Data(paths=("unused",), sequence_length=4), stretches=stretches, seed=1)


def test_a_rank_of_a_v_holds_the_stages_of_both_legs() -> None:
    v = layout((0, 1, 1, 0), cuts=((0, 1), (1, 3), (3, 4), (4, 6)))

    assert v.stretches(0) == ((0, 1), (4, 6))
    assert v.stretches(1) == ((1, 3), (3, 4))
    assert [v.owner_of(f"layers.{layer}.weight") for layer in range(6)] == [0, 1, 1, 1, 0, 0]


def test_a_layer_of_two_routes_stands_on_two_ranks_and_the_first_route_speaks() -> None:
    both_ways = layout((0, 1), (1, 0), cuts=((0, 2), (2, 4)))

    assert both_ways.stretches(1) == ((2, 4), (0, 2))
    shares = both_ways.shares(part(MODEL, (2, 4), (0, 2)))
    assert shares["layers.1.qkv.weight"] == Share(stages=(0,), ranks=(0, 1, 2, 3))
    assert shares["layers.2.qkv.weight"] == Share(stages=(1,), ranks=(0, 1, 2, 3))
    assert both_ways.owner_of("layers.1.weight") == 0
    assert both_ways.owner_of("layers.2.weight") == 1


def test_a_shared_parameter_stands_wherever_one_of_its_layers_does() -> None:
    straight = layout((0, 1, 2), cuts=((0, 1), (1, 2), (2, 4)))
    tied = Model(gpt=GptModel(num_layers=2, hidden_size=8, num_heads=1, tie_embeddings=True))
    shares = straight.shares(part(tied, (0, 1)))

    assert shares["layers.0.token.weight"] == Share(stages=(0, 2), ranks=(0, 2, 3, 5))
    assert shares["layers.0.position.weight"] == Share(stages=(0,), ranks=(0, 3))
    assert straight.all_shares(part(tied, (1, 2)))[-1] == Share(stages=(0, 2), ranks=(0, 2, 3, 5))
    assert straight.owner_of("layers.0.token.weight") == 0
