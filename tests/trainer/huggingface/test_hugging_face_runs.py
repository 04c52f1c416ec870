"""A transformers model in a real pipeline: losses and gradients are the whole model's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MixtralConfig

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Lora, Model, Precision
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from pipelinejob_trainer.data.micro_batch import MicroBatch
from pipelinejob_trainer.models.huggingface.names import Names
from pipelinejob_trainer.models.part import build_part
from support.training.pipelines import Job, run_threads, run_unsplit

LAYERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tied llama with a few hidden units, grouped queries, and dropout in attention."""
    path = tmp_path_factory.mktemp("llama")
    LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attention_dropout=0.1,
    ).save_pretrained(path)
    return path


def llama(folder: Path) -> Model:
    return Model(
        hugging_face=HuggingFaceModel(path=str(folder), weights=Weights.RANDOM),
        num_layers=LAYERS + 2,
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("schedule", "stages", "chunks"),
    [
        (ScheduleName.ONE_F_ONE_B, 3, None),
        (ScheduleName.ZB_H1, 2, None),
        (ScheduleName.INTERLEAVED, 2, 2),
    ],
)
def test_a_pipeline_has_the_losses_and_gradients_of_one_process(
    text: Path, folder: Path, *, schedule: ScheduleName, stages: int, chunks: int | None, recompute: bool
) -> None:
    job = Job(
        text=text,
        model=llama(folder),
        stages=stages,
        schedule=schedule,
        chunks=chunks,
        micro_batches=4,
        recompute=recompute,
    )

    whole, cut = run_unsplit(job), run_threads(job)

    assert cut.losses == pytest.approx(whole.losses, rel=1e-6)
    assert cut.gradients.keys() == whole.gradients.keys()
    for name, expected in whole.gradients.items():
        assert torch.allclose(cut.gradients[name], expected, rtol=1e-5, atol=1e-7), name


_LORA = Lora(targets=("q_proj", "v_proj", "down_proj"), rank=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": Precision.BF16},
        {"replicas": 2},
        {"lora": _LORA},
        {"precision": Precision.BF16, "replicas": 2, "lora": _LORA},
    ],
    ids=["bf16", "replicas", "lora", "all"],
)
def test_it_has_them_in_bf16_with_replicas_and_with_adapters_too(
    text: Path, folder: Path, changes: dict[str, Any]
) -> None:
    job = Job(
        text=text, model=llama(folder), stages=2, schedule=ScheduleName.ZB_H1, micro_batches=2, steps=1, **changes
    )
    bound = 2e-2 if job.precision is Precision.BF16 else 1e-5

    whole, cut = run_unsplit(job), run_threads(job)

    assert cut.losses == pytest.approx(whole.losses, rel=bound / 10)
    assert cut.gradients.keys() == whole.gradients.keys()
    assert all(".lora_" in name for name in cut.gradients) == (job.lora is not None)
    for name, expected in whole.gradients.items():
        assert float((cut.gradients[name] - expected).abs().max()) <= bound * float(expected.abs().max()), name


@dataclass(frozen=True, kw_only=True)
class Packed(Job):
    """A job whose rows hold two documents each."""

    def dataset(self) -> Any:
        return _Packing(super().dataset(), self.sequence_length)


@dataclass(frozen=True)
class _Packing:
    inner: Any
    length: int

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        tokens, targets, _ = self.inner.batch(step, replica, micro_batch)
        first = 3 + micro_batch
        positions = torch.cat([torch.arange(first), torch.arange(self.length - first)]).expand(tokens.shape)
        return MicroBatch(tokens, targets, positions)


@pytest.mark.parametrize("kind", [Job, Packed])
@pytest.mark.parametrize(("schedule", "stages"), [(ScheduleName.ONE_F_ONE_B, 3), (ScheduleName.ZB_H1, 2)])
def test_a_pipeline_trains_the_model_that_transformers_itself_makes(
    text: Path, folder: Path, kind: type[Job], schedule: ScheduleName, stages: int
) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.attention_dropout = 0.0
    config.save_pretrained(text.parent)
    trained = kind(text=text, model=llama(text.parent), stages=stages, schedule=schedule, micro_batches=3, steps=1)

    assert_is_trained_as_by_transformers(trained, config)


@pytest.mark.parametrize("kind", [Job, Packed])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("schedule", "stages"), [(ScheduleName.ONE_F_ONE_B, 3), (ScheduleName.ZB_H1, 2)])
def test_experts_are_balanced_as_in_one_process(
    text: Path, kind: type[Job], schedule: ScheduleName, stages: int, *, recompute: bool
) -> None:
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
        output_router_logits=True,
        router_aux_loss_coef=0.3,
    )
    config.save_pretrained(text.parent)
    trained = kind(
        text=text,
        model=llama(text.parent),
        stages=stages,
        schedule=schedule,
        micro_batches=3,
        steps=1,
        recompute=recompute,
    )

    assert_is_trained_as_by_transformers(trained, config, coefficient=0.3)


def assert_is_trained_as_by_transformers(job: Job, config: Any, *, coefficient: float = 0.0) -> None:
    """Compare one step's loss and gradients with those of the model that transformers makes, in one process."""
    part = build_part(job.model, job.data, stretches=[(0, LAYERS + 2)], seed=job.seed)
    names = Names(blocks="model.layers", num_blocks=LAYERS, head=frozenset({"model.norm.weight", "lm_head.weight"}))
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict({names.full(name): each for name, each in part.named_parameters().items()}, strict=False)
    losses = []
    for k in range(job.micro_batches):
        tokens, targets, positions = job.dataset().batch(1, 0, k)
        output = plain(input_ids=tokens, position_ids=positions, use_cache=False)  # a cache mixes documents
        loss = functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
        if coefficient:
            loss = loss + coefficient * output.aux_loss
        loss = loss / job.micro_batches
        loss.backward()
        losses.append(float(loss.detach()))

    found = run_threads(job)

    assert found.losses == pytest.approx([sum(losses)], rel=1e-5)
    assert {names.full(name) for name in found.gradients} == {name for name, _ in plain.named_parameters()}
    for name, gradient in found.gradients.items():
        expected = plain.get_parameter(names.full(name)).grad
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6), name
