"""Real trainer processes that train adapters: checked, saved, resumed, evaluated, and sampled from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import Evaluation, GptModel, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.sample import load_newest
from support.training.gangs import Gang, plan

MODEL = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2, dropout=0.1, tie_embeddings=True))
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["qkv", "feed_forward_in"]}

pytestmark = pytest.mark.xdist_group("gangs")


def adapting(*layers: int, name: ScheduleName = ScheduleName.ONE_F_ONE_B, replicas: int = 1, **training: Any) -> Plan:
    return plan(
        *layers,
        model=MODEL,
        replicas=replicas,
        schedule=ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2),
        training={"lora": LORA, "preflight": True, **training},
        evaluation=Evaluation(interval_steps=3),
    )


@pytest.fixture(scope="module")
def three(make: Callable[[Plan], Gang]) -> Gang:
    return make(adapting(2, 2, 2)).finish()


def held_by(gang: Gang, step: int) -> dict[str, torch.Tensor]:
    shards = sorted((gang.checkpoints / f"step-{step:08d}").glob("*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def continued(gang: Gang, later: Plan, *, name: str) -> Gang:
    """Return another gang over a copy of a run that is back at step 3."""
    folder = gang.folder.with_name(f"{gang.folder.name}-{name}")
    shutil.copytree(gang.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    return Gang(folder, later, attempt=1, environment=gang.environment)


def test_a_checkpoint_holds_the_adapters_and_their_optimiser_and_nothing_else(three: Gang) -> None:
    names = {
        f"layers.{layer}.{matrix}.lora_{side}"
        for layer in (1, 2, 3, 4)
        for matrix in ("qkv", "feed_forward_in")
        for side in "AB"
    }

    assert held_by(three, 6).keys() == {
        f"{kind}/{name}" for kind in ("parameter", "first_moment", "second_moment", "updates") for name in names
    }
    assert "preflight: one step's gradients agree with a single process's" in three.logs()
    assert three.losses()[-1] < three.losses()[0]


@pytest.mark.parametrize("name", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
def test_it_goes_on_under_another_split_and_schedule(three: Gang, name: ScheduleName) -> None:
    two = continued(three, adapting(4, 2, name=name), name=name.value).start().finish()

    assert "resumed from the checkpoint of step 3" in two.logs()
    assert two.losses() == pytest.approx(three.losses(), rel=1e-6)
    mine, others = held_by(two, 6), held_by(three, 6)
    assert mine.keys() == others.keys()
    for each, tensor in mine.items():
        assert torch.allclose(tensor, others[each], rtol=1e-4, atol=1e-6), each


def test_so_do_replicas(three: Gang) -> None:
    two = continued(three, adapting(3, 3, replicas=2), name="replicas").start().finish()

    assert "resumed from the checkpoint of step 3" in two.logs()


def test_one_process_samples_from_it(three: Gang) -> None:
    whole = build_part(MODEL, three.plan.data, stretches=[(0, 6)], seed=7, lora=three.plan.training.lora)

    assert load_newest(whole, CheckpointFolder(three.checkpoints)) == 6
    assert whole.named_parameters()["layers.1.qkv.lora_B"].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 8}, "its adapters belong to a model whose weights have the digest"),
        ({"lora": None}, "it holds the adapters of a job with spec.training.lora, and no model"),
    ],
)
def test_a_checkpoint_of_another_base_is_refused(
    three: Gang, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    shutil.copytree(three.checkpoints, tmp_path / "checkpoints")
    changed = adapting(2, 2, 2, **changes)
    whole = build_part(MODEL, changed.data, stretches=[(0, 6)], seed=changed.training.seed, lora=changed.training.lora)

    with pytest.raises(UserError, match=words):
        load_newest(whole, CheckpointFolder(tmp_path / "checkpoints"))


def test_so_it_is_by_a_gang(three: Gang) -> None:
    other = continued(three, adapting(2, 4, seed=8), name="other")

    assert set(other.start().wait().values()) == {ExitCode.USER_ERROR}
    assert "belong to a model whose weights have the digest" in other.termination("job-r0-s1").message


def test_a_target_that_no_stage_has_is_refused_by_all(make: Callable[[Plan], Gang]) -> None:
    gang = make(adapting(3, 3, lora=LORA | {"targets": ["layers.1.qkv", "query"]}))

    assert set(gang.wait().values()) == {ExitCode.USER_ERROR}
    for stage in (0, 1):
        termination = gang.termination(f"job-r0-s{stage}")
        assert termination.reason == "NoSuchTarget"
        assert "spec.training.lora.targets: 'query' names no linear layer" in termination.message
