"""Who gives which layers to whom where they are divided anew, and which copies are made before stages leave."""

import pytest
import torch

from pipelinejob_trainer.recovery.history import Border, History
from pipelinejob_trainer.recovery.leaving import entrusted
from pipelinejob_trainer.recovery.moving_layers import choose_moves, described

TWO = (((0, 2),), ((2, 4),))
THREE = (((0, 1),), ((1, 3),), ((3, 4),))


def names(*layers: int) -> tuple[str, ...]:
    return tuple(f"{kind}/layers.{layer}.weight" for kind in ("parameter", "exp_avg") for layer in layers)


def border(step: int, *layers: int) -> Border:
    tensors = {name: torch.full((2,), float(step)) for name in names(*layers)}
    return Border(step=step, loss=1.0, samples=8 * step, tensors=tensors)


def test_each_rank_gets_what_it_lacks_from_who_has_it_and_keeps_what_it_has():
    held = [{7: names(0, 1)}, {7: names(2, 3)}, {}]
    wanted = [{7: names(0)}, {7: names(1, 2)}, {7: names(3)}]
    moves = choose_moves(held, wanted)
    assert moves is not None
    assert moves.step == 7
    assert [dict(each) for each in moves.sources] == [
        {0: tuple(sorted(names(0)))},
        {0: tuple(sorted(names(1))), 1: tuple(sorted(names(2)))},
        {1: tuple(sorted(names(3)))},
    ]


def test_the_newest_step_counts_at_which_nobody_misses_anything():
    held = [{7: names(0, 1), 8: names(0, 1)}, {7: names(2, 3)}]
    assert choose_moves(held, [{7: names(0, 1, 2)}, {7: names(3)}]).step == 7
    assert choose_moves(held, [{7: names(0)}, {}]) is None


def test_replicas_that_have_the_same_share_what_there_is_to_give():
    held = [{7: names(0)}, {7: names(0)}, {}, {}]
    moves = choose_moves(held, [{7: names(0)}] * 4)
    assert [list(each) for each in moves.sources] == [[0], [1], [0], [1]]


@pytest.mark.parametrize(
    ("stay", "size", "stages", "buddies", "expected"),
    [
        ([0, 1], 4, 4, (1, 2, 3, 0), {(1, 0), (2, 0), (2, 1), (3, 1)}),  # 3's copy is with its buddy 0 already
        ([0, 1, 2], 3, 3, (1, 2, 0), set()),  # all stay: each has a buddy
        ([0, 1], 4, 2, (), {(0, 1), (1, 0)}),  # one replica of two stays
        ([0], 2, 2, (1, 0), set()),  # the only one that stays keeps the other's copy
        ([0], 4, 1, (), set()),
    ],
)
def test_each_state_is_with_two_that_stay_before_others_leave(stay, size, stages, buddies, expected):
    assert {*entrusted(stay, size=size, num_stages=stages, buddies=buddies)} == expected


def test_what_was_kept_by_another_layout_stays_until_a_step_is_done_by_the_new_one():
    history = History()
    history.go_over_to(TWO)
    history.keep(border(7, 0, 1))
    history.keep_copy(1, border(7, 2, 3))
    history.go_over_to(THREE)
    assert (history.holding().own, history.holding().copies, history.holding().earlier) == ((), {}, (7,))
    assert history.names() == {7: tuple(sorted(names(0, 1, 2, 3)))}
    assert {*history.part(7, names(1, 2)).tensors} == {*names(1, 2)}

    history.keep(border(7, 0))
    assert history.holding().earlier == (7,)
    history.keep(border(8, 0))
    assert (history.holding().own, history.holding().earlier) == ((7, 8), ())


def test_a_copy_that_arrives_late_is_of_the_layout_that_it_was_sent_by():
    history = History()
    history.go_over_to(TWO)
    before = history.layout
    history.go_over_to(THREE)
    history.keep_copy(1, border(7, 2, 3), layout=before)
    assert (history.holding().copies, history.holding().earlier) == ({}, (7,))


def test_layers_are_named_in_runs():
    assert described(names(4)) == "layer 4"
    assert described(names(1, 2, 3, 7)) == "layers 1-3, 7"
