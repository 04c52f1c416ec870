"""Hugging Face folders whose experts replicas divide: what they train and read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dimensions import ONE, SAVED, Shape, carried_over, difference, folder_of, job
from pipelinejob.planning.dimensions import unrunnable
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Model, Parallelism, Sharding, Training
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.communication.expert_group import ExpertGroup
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.huggingface import experts
from pipelinejob_trainer.models.huggingface.layers import Narrow
from support.training.divided_folders import (
    DATA,
    LAYERS,
    MORE,
    CountedReads,
    assert_make_up,
    bytes_of,
    part_of,
)
from support.training.loops import Run, train
from support.training.meetings import gradients_of_experts_differ

# Experts behind one another in the folder, and one file each; halves; with tensor ranks, which
# have a part of each.
CASES = {
    "mixtral": (Shape(2, 1, 2, expert=2), ScheduleName.ZB_H1),
    "qwen3_moe": (Shape(1, 2, 2, Sharding.FULL, expert=2), ScheduleName.ONE_F_ONE_B),
}


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, tuple[Run, Run]]:
    """Train each family in one process, and in four."""
    models = {kind: folder_of(kind, root) for kind in CASES}
    alone = train(*(job(root / "text", model, ONE) for model in models.values()), folder=root / "alone")
    jobs = (job(root / "text", models[kind], *case) for kind, case in CASES.items())
    together = train(*jobs, folder=root / "together")
    return dict(zip(CASES, zip(together, alone, strict=True), strict=True))


@pytest.mark.parametrize("kind", CASES)
def test_replicas_that_divide_a_folders_experts_train_what_a_single_process_does(
    kind: str, runs: dict[str, tuple[Run, Run]]
) -> None:
    found = difference(*runs[kind])
    assert found.is_small, found


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_a_checkpoint_goes_into_any_other_shape_and_back_bit_for_bit(number: int, root: Path, tmp_path: Path) -> None:
    kind, shape = list(CASES)[number], Shape(2, 2, 4, Sharding.OPTIMIZER, expert=4)
    checkpoint = CheckpointFolder(root / f"together/plan-{number}").open(SAVED)
    before = checkpoint.contents()
    wanted = job(root / "text", folder_of(kind, root), shape)
    after = carried_over(checkpoint.path.parent, wanted, tmp_path)
    assert sorted(after.names) == sorted(before.names)
    for name in before.names:
        assert torch.equal(after.tensor(name), before.tensor(name)), name


@pytest.mark.parametrize("narrow", [None, Narrow(2, 2)], ids=["folder", "narrow"])
@pytest.mark.parametrize("kind", CASES)
def test_portions_make_up_the_whole(kind: str, narrow: Narrow | None, root: Path) -> None:
    model = folder_of(kind, root)
    whole = part_of(model, narrow=narrow)
    parts = [
        part_of(model, TensorGroup(number // 2, 2), ExpertGroup(number % 2, 2), narrow=narrow) for number in range(4)
    ]
    assert_make_up(whole, parts)
    for part in parts:
        divided = [name for name in whole.named_parameters() if part.is_divided(name, part.expert_group)]
        assert len(divided) == 2 * (LAYERS - 2)


def test_a_rank_reads_its_own_experts_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = CountedReads(monkeypatch)
    for kind in CASES:
        before = read.num_bytes
        part = part_of(folder_of(kind, root), expert=ExpertGroup(1, 2))
        assert read.num_bytes - before == bytes_of(part)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("llama", {}, "base_model_ep_plan"),
        ("mixtral", {"num_local_experts": 3}, "2 replicas cannot share 3 experts equally; use a divisor of 3"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(kind: str, changes: dict[str, int], words: str, root: Path) -> None:
    with pytest.raises(UserError, match=words) as raised:
        part_of(folder_of(kind, root, **changes), expert=ExpertGroup(0, 2))
    assert raised.value.reason == "NotDivided"


def test_a_family_whose_experts_lie_otherwise_is_refused_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "_MATRICES", "another")
    with pytest.raises(UserError, match="is no matrix of each expert behind the other"):
        part_of(folder_of("mixtral", root), expert=ExpertGroup(0, 2))


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "olmoe", "deepseek_v3", "gpt_oss"])
def test_gradients_of_divided_experts_are_the_whole_models(kind: str, root: Path) -> None:
    """Experts that are normalized, beside one that all tokens share, chosen by sigmoids in groups, with biases."""
    error, name = gradients_of_experts_differ(folder_of(kind, root, **MORE.get(kind, {})), DATA, 2, vocabulary=30)
    assert error < 1e-4, name


@pytest.mark.parametrize(("expert", "preflight", "refused"), [(2, False, True), (2, True, False), (1, False, False)])
def test_a_family_s_own_plan_is_not_followed_unchecked(expert: int, preflight: bool, refused: bool) -> None:
    model = Model(hugging_face=HuggingFaceModel(path="/models/mixtral"), num_layers=LAYERS)
    training, degrees = Training(steps=1, preflight=preflight), Parallelism(pipeline=2, data=2, expert=expert)
    errors = list(unrunnable(model, training, ScheduleName.ONE_F_ONE_B, degrees, DATA))
    assert [error.path for error in errors] == ["spec.training.preflight"] * refused
