"""What serving is predicted to give, against what can be reckoned by hand."""

import pytest

from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.predict import Asked, best_spread, examples, predict
from pipelinejob.serving.scheduler import Limits

EVEN = PassCost(fixed_s=1.0, token_s=0.0)


def limits(stages: int, group_size: int = 8, groups: int | None = None) -> Limits:
    return Limits(
        groups=groups or stages + 1, group_size=group_size, chunk_tokens=64, block=16, num_blocks=4000, max_waiting=1000
    )


def test_one_request_takes_one_turn_through_all_stages_for_each_token() -> None:
    found = predict([Asked(prompt=10, new=5)], limits(4), [EVEN] * 4, link_s=0.25)

    assert found.first_token_s == 5.0
    assert found.per_token_s == 5.0
    assert found.utilization == pytest.approx((0.2,) * 4)


def test_many_requests_keep_every_stage_busy_where_one_batch_leaves_three_of_four_idle() -> None:
    asked = [Asked(prompt=10, new=60)] * 16
    grouped = predict(asked, limits(4, group_size=4), [EVEN] * 4)
    naive = predict(asked, limits(4, group_size=16, groups=1), [EVEN] * 4)

    assert min(grouped.utilization) >= 0.9
    assert max(naive.utilization) <= 0.26
    assert grouped.tokens_per_s > naive.tokens_per_s


def test_the_slowest_stage_sets_the_pace() -> None:
    slow = PassCost(fixed_s=3.0, token_s=0.0)
    found = predict([Asked(prompt=10, new=80)] * 12, limits(3, group_size=4), [EVEN, slow, EVEN])

    assert found.utilization[1] > 0.97
    assert found.utilization[0] == pytest.approx(found.utilization[1] / 3)


def test_chunks_of_a_prompt_overlap_on_the_stages() -> None:
    by_token = PassCost(fixed_s=0.0, token_s=1.0)
    found = predict([Asked(prompt=64 * 5, new=1)], limits(4), [by_token] * 4)

    assert found.first_token_s == 64 * (5 + 3)  # as a pipeline of five micro-batches, not 4 * 64 * 5


def test_requests_that_come_later_are_counted_from_then() -> None:
    found = predict([Asked(prompt=3, new=1), Asked(at_s=100.0, prompt=3, new=1)], limits(2), [EVEN] * 2)

    assert found.first_token_s == 2.0


def test_stages_that_share_processors_go_slower_together_and_not_alone() -> None:
    alone, crowd = [Asked(prompt=10, new=5)], [Asked(prompt=10, new=60)] * 16
    shared = predict(alone, limits(3), [EVEN] * 3, processors=2)
    free, two = (predict(crowd, limits(3, group_size=8), [EVEN] * 3, processors=number) for number in (None, 2))

    assert shared.per_token_s == 3.0  # one stage computes at a time
    assert free.tokens_per_s == pytest.approx(1.5 * two.tokens_per_s, rel=0.05)
    assert min(two.utilization) > 0.9  # they wait for a processor in the midst of passes


def test_two_stages_on_one_processor_take_turns_as_can_be_reckoned() -> None:
    asked = [Asked(prompt=4, new=1), Asked(prompt=4, new=1)]
    found = predict(asked, limits(2), [EVEN] * 2, processors=1)

    # The first stage alone until 1, both stages at half the speed until 3, the second alone until
    # 4.
    assert found.first_token_s == (3.0 + 4.0) / 2
    assert found.utilization == (0.75, 0.75)


@pytest.mark.parametrize(("processors", "spread"), [(1, 1), (2, 2), (3, 4), (None, 4)])
def test_so_many_groups_are_filled_first_as_processors_can_compute_at_once(
    processors: float | None, spread: int
) -> None:
    assert best_spread(limits(3), [EVEN] * 3, processors=processors) == spread


def test_a_processor_that_all_share_gives_more_with_one_large_batch_than_with_small_ones() -> None:
    asked, costs = [Asked(prompt=10, new=60)] * 4, [EVEN] * 3
    (_, four, _) = examples(limits(3), costs, processors=1)
    apart = predict(asked, limits(3), costs, processors=1)
    together = predict(asked, limits(3), costs, processors=1, spread=1)

    assert together.tokens_per_s > 3 * apart.tokens_per_s  # four tokens a pass for one
    assert four.tokens_per_s > 3 * apart.tokens_per_s
