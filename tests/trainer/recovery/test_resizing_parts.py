"""A rank under a plan with other replicas: what stays, what is refused, and which text it reads."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import ScheduleSpec
from pipelinejob_trainer.data.dataset import open_dataset
from pipelinejob_trainer.runtime.rank import build_rank
from pipelinejob_trainer.training.preparation import Preparation
from support.training.recovering import recovering_plan


def shared(*layers: int, replicas: int, micro_batches: int = 4) -> Plan:
    schedule = ScheduleSpec(micro_batches=micro_batches // replicas, micro_batch_size=2)
    return recovering_plan(*layers, replicas=replicas, schedule=schedule)


def prepared(plan: Plan) -> Preparation:
    """Return what a rank prepares, as far as a change of replicas changes it."""
    made: Any = SimpleNamespace(plan=plan)
    made.rank = build_rank(plan, index=0, replica=0, device=torch.device("cpu"))
    made.batches = open_dataset(plan.data, schedule=plan.schedule, replicas=plan.parallelism.data, seed=7)
    made.evaluation_batches = None
    return made


def test_the_layers_are_the_same_and_their_gradients_are_summed_over_the_replicas_that_there_are() -> None:
    one = prepared(shared(3, 1, replicas=1))
    part, before = one.rank.part, one.batches
    assert one.rank.buckets == ()

    Preparation.go_over_to(one, shared(3, 1, replicas=2))

    assert one.rank.part is part
    assert {each.share.ranks for each in one.rank.buckets} == {(0, 2)}
    assert before is not None
    assert one.batches is not None
    whole = [before.batch(3, 0, number).tokens for number in range(4)]
    divided = [one.batches.batch(3, replica, number).tokens for replica in range(2) for number in range(2)]
    assert torch.equal(torch.cat(whole), torch.cat(divided)), "a step has other sequences, or in another order"

    Preparation.go_over_to(one, shared(3, 1, replicas=1))
    assert one.rank.buckets == ()


def test_a_plan_of_another_step_is_refused() -> None:
    one = prepared(shared(3, 1, replicas=1))

    with pytest.raises(PipelineJobError, match="a step has 8 sequences, and by the plan that was told 16"):
        Preparation.go_over_to(one, shared(3, 1, replicas=2, micro_batches=8))
    assert one.plan.parallelism.data == 1
