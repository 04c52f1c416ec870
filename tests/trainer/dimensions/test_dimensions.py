"""Tensor parallelism and sharded optimisers against a single process; checkpoints between shapes; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dimensions import DECODER, EXPERTS, GPT, ONE, SAVED, STEPS, Shape, carried_over, difference, job
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Lora, Model, Sharding
from pipelinejob.spec.optimization import Optimizer
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.tensor_parallel import Slice
from support.training import loops
from support.training.loops import Run, train

MODELS = (GPT, DECODER, EXPERTS)
SHARDED = (Sharding.OPTIMIZER, Sharding.FULL)
# One of each kind: a table shared by stages that is divided, halves, heads' norms, experts, two
# stages a rank, shards, tokens that are divided, and with shards layers that are computed again.
CASES = (
    (GPT, Shape(2, 2), ScheduleName.ZB_H1),
    (DECODER, Shape(2, 2), ScheduleName.DUALPIPE_V),
    (EXPERTS, Shape(2, 2), ScheduleName.ZB_V),
    (DECODER, Shape(1, 2, 2, Sharding.OPTIMIZER), ScheduleName.ONE_F_ONE_B),
    (GPT, Shape(2, 1, 2, Sharding.OPTIMIZER), ScheduleName.INTERLEAVED),
    (GPT, Shape(2, 2, sequence_parallel=True), ScheduleName.ZB_H1),
    (EXPERTS, Shape(2, 2, sequence_parallel=True), ScheduleName.DUALPIPE_V),
    (DECODER, Shape(1, 2, 2, Sharding.OPTIMIZER, sequence_parallel=True), ScheduleName.ONE_F_ONE_B),
    (GPT, Shape(2, 1, 2, Sharding.FULL), ScheduleName.ZB_V),
    (DECODER, Shape(1, 2, 2, Sharding.FULL), ScheduleName.ZB_H1),
    (EXPERTS, Shape(2, 1, 2, Sharding.FULL), ScheduleName.INTERLEAVED),
    (GPT, Shape(2, 1, 2, Sharding.FULL), ScheduleName.ONE_F_ONE_B),
    (GPT, Shape(2, 1, 2, Sharding.FULL, recomputed=2), ScheduleName.ONE_F_ONE_B),
    (DECODER, Shape(1, 2, 2, Sharding.FULL, recomputed=3), ScheduleName.ZB_H1),
    (EXPERTS, Shape(2, 1, 2, Sharding.OPTIMIZER, recomputed=4), ScheduleName.ZB_V),
)


@pytest.fixture(scope="module")
def alone(text: Path, folder: Path) -> list[Run]:
    """Train each model in a single process."""
    return train(*(job(text, model, ONE) for model in MODELS), folder=folder / "alone")


@pytest.fixture(scope="module")
def together(text: Path, folder: Path) -> list[Run]:
    return train(*(job(text, *case) for case in CASES), folder=folder / "together")


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda each: f"{CASES[each][1]}-{CASES[each][2]}")
def test_any_shape_trains_what_a_single_process_does(number: int, alone: list[Run], together: list[Run]) -> None:
    found = difference(together[number], alone[MODELS.index(CASES[number][0])])
    assert found.is_small, found


@pytest.mark.usefixtures("alone", "together")
@pytest.mark.parametrize("shape", [ONE, Shape(4, 2), *(Shape(2, 2, 2, each) for each in SHARDED)], ids=str)
@pytest.mark.parametrize("case", [0, 4, 9], ids=["divided", "sharded", "whole-shards"])
def test_a_checkpoint_of_any_shape_loads_into_any_other_bit_for_bit(
    shape: Shape, case: int, text: Path, folder: Path, tmp_path: Path
) -> None:
    written = CheckpointFolder(folder / "together" / f"plan-{case}").open(SAVED)
    wanted = job(text, CASES[case][0], shape)
    before, after = written.contents(), carried_over(written.path.parent, wanted, tmp_path)
    assert sorted(after.names) == sorted(before.names)
    assert any(name.startswith("second_moment/") for name in after.names)
    for name in before.names:
        assert torch.equal(after.tensor(name), before.tensor(name)), name


def test_a_loss_of_ones_own_gets_whole_logits(text: Path, tmp_path: Path) -> None:
    usual = job(text, GPT, Shape(1, 2), steps=4)
    own = usual.model_copy(update={"training": usual.training.model_copy(update={"loss": "dimensions:summed"})})
    one, other = train(usual, own, folder=tmp_path)
    assert other.refused is None
    assert one.losses == pytest.approx(other.losses, rel=1e-6)
    assert len(one.losses) == 4


@pytest.mark.usefixtures("together")
def test_a_run_goes_on_in_another_shape_as_in_its_own(text: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("one", "four"):
        shutil.copytree(folder / "together" / "plan-0", tmp_path / name / "plan-0")
    (one,) = loops.resume(job(text, GPT, ONE), step=SAVED, folder=tmp_path / "one")
    (four,) = loops.resume(job(text, GPT, Shape(1, 2, 2, Sharding.OPTIMIZER)), step=SAVED, folder=tmp_path / "four")
    assert len(one.losses) == len(four.losses) == STEPS - SAVED
    assert one.losses == pytest.approx(four.losses, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"tensor": 3}, "NotDivided", "3 ranks cannot share 2 heads equally"),
        ({"lora": Lora(rank=2, targets=("all",))}, "NotRunnable", "spec.training.lora"),
        ({"optimizer": Optimizer.MUON}, "NotRunnable", "use AdamW or SGD"),
        ({"schedule": ScheduleName.PIPEDREAM_2BW}, "NotRunnable", "PipeDream-2BW updates within a step"),
        ({"entrypoint": "layers.shared_models:tied"}, "NotRunnable", "and Hugging Face folders alone"),
        ({"sharding": Sharding.FULL, "entrypoint": "layers.shared_models:tied"}, "NotRunnable", "layers of your own"),
        ({"sharding": Sharding.FULL, "schedule": ScheduleName.DUALPIPE}, "NotRunnable", "on two ranks of a pipeline"),
        ({"expert": 2}, "NotDivided", "1 replicas make no whole groups of 2 that divide experts"),
        ({"sequence_parallel": True, "length": 15}, "NotRunnable", "2 ranks cannot share sequences of 15 tokens"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else None,
)
def test_what_is_not_right_is_refused_by_name(
    change: dict[str, object], reason: str, words: str, text: Path, tmp_path: Path
) -> None:
    wanted = job(text, GPT, Shape(1, 2))
    degrees = {name: change[name] for name in ("tensor", "sharding", "sequence_parallel", "expert") if name in change}
    training = {name: change[name] for name in ("lora", "optimizer") if name in change}
    model = Model(entrypoint=str(change["entrypoint"]), num_layers=8) if "entrypoint" in change else wanted.model
    schedule = {"name": change["schedule"]} if "schedule" in change else {}
    length = {"sequence_length": change["length"]} if "length" in change else {}
    refused = wanted.model_copy(
        update={
            "data": wanted.data.model_copy(update=length),
            "model": model,
            "parallelism": wanted.parallelism.model_copy(update=degrees),
            "training": wanted.training.model_copy(update=training),
            "schedule": wanted.schedule.model_copy(update=schedule),
        }
    )
    config = loops.config(refused, stage=0, replica=0, tensor=0, folder=tmp_path)
    with pytest.raises(loops.UserError, match=words) as raised:
        loops.loop.Preparation(config, refused)
    assert raised.value.reason == reason


@pytest.mark.parametrize("extent", [6, 7])
@pytest.mark.parametrize(("dim", "blocks"), [(0, 1), (1, 1), (1, 2)])
def test_parts_of_a_tensor_make_up_the_whole(dim: int, blocks: int, extent: int) -> None:
    shape = [3, 5]
    shape[dim] = blocks * extent
    whole, again = torch.randn(shape), torch.zeros(shape)
    cut = Slice(dim, blocks, tuple(shape))
    for rank in range(2):
        group = TensorGroup(rank, 2)
        part = cut.of(whole, group)
        assert part.shape == cut.part_shape(group)
        cut.put(part, again, group)
    assert torch.equal(again, whole)
