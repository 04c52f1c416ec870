"""Checkpoints from any shape into any other.

What every shape takes over from one process's checkpoint and writes again is, put together, that
checkpoint to the last bit. A reader puts wholes together first, so each shape loads what each
other one wrote.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dimensions import DECODER, EXPERTS, GPT, ONE, SAVED, Shape, carried_over, job
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Sharding
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.checkpoint.pieces import Contents
from support.training.loops import train

MODELS = {"gpt": GPT, "decoder": DECODER, "experts": EXPERTS}
NONE, OPTIMIZER, FULL = Sharding
PLAIN, V = ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_V
# Of each stage its layers: some alone, some with embedding or head; where one rank has the first
# and last, with both.
SHAPES: dict[str, tuple[Shape, ScheduleName, tuple[int, ...]]] = {
    "uneven stages": (Shape(3), PLAIN, (1, 5, 2)),
    "uneven stages both ways": (Shape(2, 1, 2, OPTIMIZER), ScheduleName.DUALPIPE_V, (3, 1, 1, 3)),
    "tensor": (Shape(2, 2), PLAIN, (6, 2)),
    "tensor, shards of three replicas": (Shape(2, 2, 3, OPTIMIZER), V, (1, 1, 4, 2)),
    "layers of three replicas": (Shape(2, 1, 3, FULL), PLAIN, (5, 3)),
    "tensor, layers of two": (Shape(3, 2, 2, FULL), PLAIN, (2, 5, 1)),
    "a table whole, a table in shards": (Shape(2, 1, 2, FULL), V, (2, 1, 4, 1)),
    "more replicas than a bias has elements": (Shape(1, 2, 32, FULL), PLAIN, (8,)),
}
OF_EXPERTS: dict[str, tuple[Shape, ScheduleName, tuple[int, ...]]] = {
    "experts": (Shape(2, 1, 2, expert=2), PLAIN, (3, 5)),
    "each expert alone": (Shape(1, 2, 4, FULL, expert=4), PLAIN, (8,)),
    "experts in shards": (Shape(2, 1, 6, OPTIMIZER, expert=2), V, (1, 4, 2, 1)),
    "tensor, experts in layers": (Shape(2, 2, 4, FULL, expert=2), PLAIN, (2, 6)),
}
CASES = [(name, case) for name in MODELS for case in SHAPES] + [("experts", case) for case in OF_EXPERTS]


@pytest.fixture(scope="module")
def alone(text: Path, folder: Path) -> dict[str, Path]:
    """Train each model in a single process; return where its checkpoints are."""
    train(*(job(text, model, ONE, steps=SAVED) for model in MODELS.values()), folder=folder)
    return {name: folder / f"plan-{number}" for number, name in enumerate(MODELS)}


def assert_equal(after: Contents, before: Contents) -> None:
    assert sorted(after.names) == sorted(before.names)
    for name in before.names:
        assert torch.equal(after.tensor(name), before.tensor(name)), name


@pytest.mark.parametrize(("model", "case"), CASES, ids=lambda each: each)
def test_a_shape_writes_again_what_it_loads_bit_for_bit(
    model: str, case: str, alone: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    shape, schedule, layers = (SHAPES | OF_EXPERTS)[case]
    before = CheckpointFolder(alone[model]).open(SAVED).contents()
    wanted = job(text, MODELS[model], shape, schedule, layers=layers)

    after = carried_over(alone[model], wanted, tmp_path)

    assert {name.partition("/")[0] for name in before.names} >= {"parameter", "first_moment", "second_moment"}
    assert_equal(after, before)
