"""Gradients of what lives on several ranks: what is added up together, in which order, and when that starts."""

import pytest
import torch
from torch import nn

from pipelinejob.schedules.actions import straight
from pipelinejob.schedules.text import parse
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.runtime import reduction
from pipelinejob_trainer.runtime.reduction import Bucket, Reducer, Share, bucket_starts, buckets, share_of

CUTS = ((0, 2), (2, 3), (3, 5))


def parameter(size: int = 1, **options: object) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size), **options)


def share(*stages: int, ranks: tuple[int, ...] = (0, 3)) -> Share:
    return Share(stages=stages, ranks=ranks)


def test_a_layer_lives_on_one_rank_of_each_replica() -> None:
    assert share_of([4], cuts=CUTS, routes=[straight(3)], replicas=range(2)) == share(2, ranks=(2, 5))


def test_of_a_bidirectional_pipeline_it_lives_on_two() -> None:
    assert share_of([2, 4], cuts=CUTS, routes=[(0, 1, 2), (2, 1, 0)], replicas=range(1)) == share(1, 2, ranks=(0, 1, 2))


def test_a_shared_parameter_lives_with_all_layers_that_use_it_and_is_counted_once() -> None:
    tied = share_of([0, 4], cuts=CUTS, routes=[straight(3)], replicas=range(2))

    assert tied == share(0, 2, ranks=(0, 2, 3, 5))
    assert [rank for rank in range(6) if tied.is_counted_by(rank)] == [0]


def test_buckets_come_last_stage_first_and_leave_out_what_needs_no_sum() -> None:
    parameters = {
        "first": parameter(),
        "last": parameter(),
        "tied": parameter(),
        "alone": parameter(),
        "frozen": parameter(requires_grad=False),
    }
    shares = {
        "first": share(0),
        "last": share(2),
        "tied": share(0, 2),
        "alone": share(1, ranks=(1,)),
        "frozen": share(1),
    }

    assert [bucket.share.stages for bucket in buckets(parameters, shares)] == [(2,), (0,), (0, 2)]


def test_a_bucket_holds_so_many_bytes_and_at_least_one_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "_BUCKET_BYTES", 40)
    parameters = {"a": parameter(4), "b": parameter(4), "c": parameter(100), "d": parameter(1)}

    made = buckets(parameters, dict.fromkeys(parameters, share(0)))

    assert [[each.numel() for each in bucket.parameters] for bucket in made] == [[4, 4], [100], [1]]


def bucket(*stages: int) -> Bucket:
    return Bucket(share=share(*stages), parameters=(parameter(),))


def test_a_stage_is_reduced_when_its_last_gradient_is_there_while_others_work() -> None:
    schedule = parse("route 0 0\nF0 F0.1 I0.1 W0.1 B0")
    late, early = bucket(1), bucket(0)

    assert bucket_starts(schedule, 0, [late, early]) == {3: [late], 4: [early]}


def test_buckets_start_in_their_order_even_where_a_later_one_is_there_before() -> None:
    schedule = parse("route 0 0\nF0 F0.1 I0.1 B0 W0.1")
    first, second = bucket(1), bucket(0)

    assert bucket_starts(schedule, 0, [first, second]) == {4: [first, second]}


def test_a_shared_parameter_waits_for_the_last_of_its_stages() -> None:
    schedule = parse("route 0 0\nF0 F0.1 B0.1 B0")

    assert list(bucket_starts(schedule, 0, [bucket(0, 1)])) == [3]


class Added:
    """A sum with another rank's tensor."""

    def __init__(self, tensor: torch.Tensor, others: list[float]) -> None:
        self.tensor = tensor
        self.others = others

    def wait(self) -> None:
        self.tensor.add_(torch.tensor(self.others))


def test_sums_take_the_place_of_gradients_and_what_no_rank_has_a_gradient_of_has_none() -> None:
    here, elsewhere, nowhere = parameter(2), parameter(1), parameter(1)
    here.grad = torch.ones(2)
    # Another rank's gradients, and for each parameter whether it has one.
    others = [0.0, 0.0, 5.0, 0.0, *(0.0, 1.0, 0.0)]
    reducer = Reducer(
        [Bucket(share=share(0), parameters=(here, elsewhere, nowhere))], lambda _, tensor: Added(tensor, others)
    )

    reducer.start(reducer.buckets[0])
    reducer.wait()

    assert (here.grad.tolist(), elsewhere.grad.tolist(), nowhere.grad) == ([1.0, 1.0], [5.0], None)


def test_a_sparse_gradient_is_refused() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    torch.nn.functional.embedding(torch.tensor([1]), weight, sparse=True).sum().backward()
    reducer = Reducer([Bucket(share=share(0), parameters=(weight,))], lambda _, tensor: Added(tensor, []))

    with pytest.raises(UserError, match=r"the gradient of a parameter of shape \(4, 2\) is sparse"):
        reducer.start(reducer.buckets[0])
