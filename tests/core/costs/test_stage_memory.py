"""What a rank holds at most, action by action, worked out by hand."""

from pipelinejob.costs.layers import LayerCost
from pipelinejob.costs.memory import AHEAD_BYTES, ahead_bytes, peak_bytes, stage_bytes
from pipelinejob.schedules.actions import B, F, I, W


def layer(**bytes_):
    fields = {"parameter_bytes": 0, "activation_bytes": 0, "output_bytes": 0, **bytes_}
    return LayerCost(name="x", forward_s=1, backward_input_s=1, backward_weight_s=1, **fields)


def peak(actions, *layers, is_split=False, received=0, recomputed=0, **others):
    stage = stage_bytes(layers, received=received, is_split=is_split, recomputed=recomputed)
    parameters = sum(each.parameter_bytes for each in layers)
    options = {"num_versions": 1, "is_asynchronous": False, **others}
    return peak_bytes([(action, 0) for action in actions], {0: stage}, parameter_bytes=parameters, **options)


def test_gradients_are_there_from_the_first_backward_pass_on():
    one = layer(parameter_bytes=100, activation_bytes=70)

    # parameters and moments: 300; two micro-batches before there are gradients, or one beside them
    assert peak([F(0), F(1), B(0), B(1)], one) == 300 + 140 + 30
    assert peak([F(0), B(0), F(1), B(1)], one) == 300 + 100 + 70


def test_a_backward_pass_works_on_the_last_layer_while_all_is_kept_and_on_the_first_when_the_others_are_done():
    first, last = layer(activation_bytes=10, working_bytes=200), layer(activation_bytes=90, working_bytes=50)

    # on the last layer 100 + 50; on the first one 10 + 200
    assert peak([F(0), B(0)], first, last) == 210
    assert peak([F(0), B(0)], last, first) == 100 + 200


def test_the_first_half_of_a_split_pass_gathers_gradients_and_lets_go_at_its_end():
    one = layer(activation_bytes=50, between_bytes=60, working_bytes=40, output_bytes=5)

    # on the last of three layers 150 + 40; each one before it finds 40 - 5 - 5 more
    assert peak([F(0), I(0), W(0)], one, one, one, is_split=True, received=5) == 150 + 2 * 30 + 40
    # between the halves 180 are kept, beside another micro-batch's 150 and what is gathered on its
    # way
    assert peak([F(0), F(1), I(0), I(1), W(0), W(1)], one, one, one, is_split=True, received=5) == 180 + 150 + 100


def test_the_second_half_makes_gradients_before_it_lets_go():
    one = layer(parameter_bytes=100, activation_bytes=50, between_bytes=60)

    assert peak([F(0), I(0), W(0)], one, is_split=True) == 300 + 100 + 60


def test_a_stage_that_computes_again_keeps_what_it_received():
    one = layer(activation_bytes=50, working_bytes=7)

    assert peak([F(0), F(1), B(0), B(1)], one, received=4, recomputed=1) == 2 * 4 + 50 + 7


def test_a_stage_that_computes_its_first_layer_again_keeps_what_it_received_and_the_rest():
    first, last = layer(activation_bytes=50, working_bytes=7), layer(activation_bytes=20, working_bytes=7)

    # two micro-batches of 4 received and 20 kept; the first layer's 50 while the backward pass of
    # one of them lasts
    assert peak([F(0), F(1), B(0), B(1)], first, last, received=4, recomputed=1) == 2 * 24 + 50 + 7
    assert peak([F(0), F(1), B(0), B(1)], first, last) == 2 * 70 + 7


def test_small_messages_are_all_received_ahead_and_large_ones_by_threes():
    assert ahead_bytes(100, 8) == 800
    assert ahead_bytes(AHEAD_BYTES // 4, 8) == AHEAD_BYTES
    assert ahead_bytes(AHEAD_BYTES, 8) == 3 * AHEAD_BYTES
    assert ahead_bytes(AHEAD_BYTES, 2) == 2 * AHEAD_BYTES
    assert ahead_bytes(0, 8) == 0


def test_an_optimizer_without_state_and_frozen_parameters_take_none():
    one = layer(parameter_bytes=60, frozen_bytes=40, optimizer_bytes=0, activation_bytes=70)

    assert peak([F(0), B(0)], one, optimizer_bytes=0) == 60 + 70
    assert peak([F(0), B(0), F(1), B(1)], one, optimizer_bytes=0) == 60 + 60 + 70
    assert one.state_bytes == 160


def test_of_sharded_parameters_a_share_is_held_and_what_is_gathered_at_a_time():
    one = layer(parameter_bytes=100, activation_bytes=70)

    assert peak([F(0), B(0), F(1), B(1)], one, weight_bytes=50 + 100, optimizer_bytes=100) == 150 + 100 + 100 + 70


def test_further_weight_versions_are_of_what_is_trained():
    one = layer(parameter_bytes=60, frozen_bytes=40, optimizer_bytes=120, activation_bytes=70)
    versions = {"optimizer_bytes": 120, "num_versions": 3, "is_asynchronous": True}

    assert peak([F(0), B(0)], one, **versions) == 60 + 120 + 2 * 60 + 60 + 70


def test_what_layers_of_a_stage_share_they_keep_once():
    one = layer(activation_bytes=50, shared_bytes=20, working_bytes=7)

    # three times 30 and once 20; the first layer works when the others' 30 are gone
    assert peak([F(0), B(0)], one, one, one) == 3 * 30 + 20 + 7
    assert peak([F(0), F(1), B(0), B(1)], one, one, one) == 2 * 110 + 7


def test_layers_that_are_computed_again_share_nothing_with_those_that_are_not():
    one = layer(activation_bytes=50, shared_bytes=20, working_bytes=7)

    # two micro-batches of 4 received and the last layer's 50; the first one's 50 while a backward
    # pass lasts
    assert peak([F(0), F(1), B(0), B(1)], one, one, received=4, recomputed=1) == 2 * 54 + 50 + 7
