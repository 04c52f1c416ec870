"""What users of other trainers report of several dimensions together: each kind against a single process.

Targets that count differ from replica to replica in all of it: in every other step half of the
replicas have none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dimensions import DECODER, EXPERTS, GPT, ONE, Shape, difference, job
from pipelinejob.contract.plan import Plan
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Experts, Model, Precision, Sharding
from pipelinejob.spec.optimization import Optimizer, ParameterGroup, SgdSettings
from pipelinejob.spec.training import OnNotFinite
from support.training.loops import Run, replicated, train
from support.training.masks import uneven
from support.training.pipelines import run_processes

STEPS = 6
FULL, OPTIMIZER = Sharding.FULL, Sharding.OPTIMIZER
DROPPED = Model(gpt=GPT.gpt.model_copy(update={"dropout": 0.2})) if GPT.gpt else GPT
GROUPS = (
    ParameterGroup(match="layers.0.position.weight", frozen=True),
    ParameterGroup(match="layers.2.*", learning_rate_scale=0.1),
    ParameterGroup(match="*.bias", weight_decay=0.3),
)
MOMENTUM = {"optimizer": Optimizer.SGD, "sgd": SgdSettings(momentum=0.8, nesterov=True), "adam_w": None}


def with_experts(**changes: Any) -> Model:
    assert EXPERTS.decoder is not None
    experts = Experts(num=4, per_token=2).model_copy(update=changes)
    return Model(decoder=EXPERTS.decoder.model_copy(update={"experts": experts}))


class Kind(NamedTuple):
    """A job, and in which shapes it is held against one process."""

    model: Model
    cases: tuple[tuple[Shape, ScheduleName], ...]
    training: dict[str, Any] = {}  # noqa: RUF012 # none changes it
    sequences: int | None = None  # of all replicas, where not all micro-batches are as large
    layers: tuple[int, ...] = ()  # of each stage, where there are several


KINDS = {
    # The weight of a balancing loss, and of each target, by degrees; a norm that counts what is
    # held twice once.
    "balanced": Kind(
        with_experts(auxiliary_loss=1.0),
        (
            (Shape(1, 2, 2, FULL, sequence_parallel=True, expert=2), ScheduleName.ONE_F_ONE_B),
            (Shape(2, 1, 2, OPTIMIZER, expert=2), ScheduleName.ZB_H1),
            (Shape(2, 2), ScheduleName.ZB_V),
        ),
        {"clip_norm": 0.3},
    ),
    "one expert a token": Kind(
        with_experts(per_token=1, normalized=False),
        ((Shape(1, 1, 4, OPTIMIZER, expert=2), ScheduleName.ONE_F_ONE_B),),
        {"clip_norm": 0.3},
    ),
    # A tied table, frozen parameters, rates and decay of their own, where a shard is flat and
    # begins anywhere.
    "groups": Kind(
        GPT,
        (
            (Shape(2, 1, 2, FULL), ScheduleName.ZB_V),
            (Shape(1, 2, 2, OPTIMIZER, sequence_parallel=True), ScheduleName.ONE_F_ONE_B),
        ),
        {"groups": GROUPS, "clip_norm": 0.1},
    ),
    "momentum": Kind(
        DECODER, ((Shape(1, 2, 2, FULL, sequence_parallel=True), ScheduleName.ZB_H1),), {**MOMENTUM, "clip_norm": 0.1}
    ),
    "dropped": Kind(DROPPED, ((Shape(2, 1, 2, FULL, recomputed=2), ScheduleName.ONE_F_ONE_B),), layers=(5, 3)),
    "documents": Kind(DECODER, ((Shape(2, 2, sequence_parallel=True), ScheduleName.ZB_H1),), layers=(3, 5)),
    "short": Kind(DECODER, ((Shape(2, 1, 2, OPTIMIZER), ScheduleName.ONE_F_ONE_B),), sequences=14),
    "poisoned": Kind(
        GPT,
        ((Shape(1, 2, 2, FULL), ScheduleName.ONE_F_ONE_B), (Shape(2, 1, 2, OPTIMIZER), ScheduleName.ZB_H1)),
        {"loss": "support.training.masks:poisoned", "on_not_finite": OnNotFinite.SKIP},
    ),
}
CASES = [(name, *case) for name, kind in KINDS.items() for case in kind.cases]


def wanted(text: Path, name: str, shape: Shape, schedule: ScheduleName = ScheduleName.ONE_F_ONE_B) -> Plan:
    kind = KINDS[name]
    layers = kind.layers if shape.pipeline > 1 else ()
    made = job(text, kind.model, shape, schedule, steps=STEPS, layers=layers)
    changes: dict[str, Any] = {"name": name, "training": made.training.model_copy(update=kind.training)}
    if kind.sequences is not None:
        each = kind.sequences // shape.data
        sizes = {"micro_batches": -(-each // 2), "batch_size": each}
        changes["schedule"] = made.schedule.model_copy(update=sizes)
    return made.model_copy(update=changes)


@pytest.fixture(scope="module")
def alone(text: Path, folder: Path) -> dict[str, Run]:
    runs = train(*(wanted(text, name, ONE) for name in KINDS), folder=folder / "alone", changed=uneven)
    return dict(zip(KINDS, runs, strict=True))


@pytest.fixture(scope="module")
def together(text: Path, folder: Path) -> list[Run]:
    return train(*(wanted(text, *case) for case in CASES), folder=folder / "together", changed=uneven)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda each: "-".join(map(str, CASES[each])))
def test_several_dimensions_train_what_one_does(number: int, alone: dict[str, Run], together: list[Run]) -> None:
    found = difference(together[number], alone[CASES[number][0]])
    assert found.is_small, found


def test_what_is_held_above_takes_place(alone: dict[str, Run]) -> None:
    assert all(norm > 0.3 for norm in alone["balanced"].norms)
    poisoned = alone["poisoned"].norms.count(0.0)
    assert 0 < poisoned < STEPS


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("divides_tokens", [False, True], ids=["alike", "own"])
def test_ranks_that_share_a_layer_choose_its_experts_alike(
    precision: Precision, divides_tokens: bool, text: Path, tmp_path: Path
) -> None:
    made = job(text, EXPERTS, Shape(1, 2, sequence_parallel=divides_tokens), steps=4)
    in_it = made.model_copy(update={"training": made.training.model_copy(update={"precision": precision})})

    (losses, mine), (_, others) = run_processes(replicated, in_it, tmp_path, world=2)

    assert len(losses) == 4
    assert sum("router" in name for name in mine) == 6
    for name, tensor in mine.items():
        assert torch.equal(tensor, others[name]), name
