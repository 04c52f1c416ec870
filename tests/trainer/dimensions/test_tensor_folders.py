"""Hugging Face folders whose layers several ranks share: what they train, read, hold and exchange; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dimensions import ONE, Shape, difference, folder_of, job
from pipelinejob.models.counts import Batch, count
from pipelinejob.planning.dimensions import unrunnable
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Model, Parallelism, Precision, Sharding, Training
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.nesting import Passed
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.huggingface import division
from pipelinejob_trainer.models.huggingface.files.folder import with_sizes
from pipelinejob_trainer.models.huggingface.layers import Narrow
from pipelinejob_trainer.models.losses.divided_loss import divided
from pipelinejob_trainer.models.losses.loss import token_cross_entropy
from pipelinejob_trainer.stage.stage import Stage
from pipelinejob_trainer.training.preparation import Preparation
from support.training.divided_folders import (
    DATA,
    LATENT,
    LAYERS,
    LENGTH,
    MORE,
    CountedReads,
    assert_make_up,
    bytes_of,
    part_of,
)
from support.training.loops import Run, config, train
from support.training.meetings import Unmet, gradients_differ

CPU = torch.device("cpu")
KINDS = ("llama", "qwen3", "mixtral")
ROWS = 2


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, tuple[Run, Run]]:
    """Train each family in one process, and in four, two of which share each layer; these check themselves first.

    Of one, four are two replicas that shard its layers, the embedding and the head on one rank of
    each.
    """
    models = [folder_of(kind, root) for kind in KINDS]
    alone = train(*(job(root / "text", model, ONE) for model in models), folder=root / "alone")
    shared = [job(root / "text", model, Shape(2, 2), ScheduleName.ZB_H1) for model in models]
    sharded = job(root / "text", models[0], Shape(2, 1, 2, Sharding.FULL), ScheduleName.ZB_V)
    together = train(*shared, sharded, folder=root / "together")
    return dict(zip((*KINDS, "llama, sharded"), zip(together, (*alone, alone[0]), strict=True), strict=True))


@pytest.mark.parametrize("kind", [*KINDS, "llama, sharded"])
def test_ranks_train_what_a_single_process_does(kind: str, runs: dict[str, tuple[Run, Run]]) -> None:
    found = difference(*runs[kind])
    assert found.is_small, found


@pytest.mark.parametrize(("tensor", "preflight", "refused"), [(2, False, True), (2, True, False), (1, False, False)])
def test_a_family_s_own_plan_is_not_followed_unchecked(tensor: int, preflight: bool, refused: bool) -> None:
    model = Model(hugging_face=HuggingFaceModel(path="/models/llama"), num_layers=LAYERS)
    training, degrees = Training(steps=1, preflight=preflight), Parallelism(pipeline=2, tensor=tensor)
    errors = list(unrunnable(model, training, ScheduleName.ONE_F_ONE_B, degrees, DATA))
    assert [error.path for error in errors] == ["spec.training.preflight"] * refused


@pytest.mark.parametrize("narrow", [None, Narrow(2)], ids=["folder", "narrow"])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_parts_make_up_the_whole(kind: str, narrow: Narrow | None, root: Path) -> None:
    model = folder_of(kind, root)
    parts = (part_of(model, TensorGroup(rank, 2), narrow=narrow) for rank in range(2))
    assert_make_up(part_of(model, narrow=narrow), parts)


@pytest.mark.parametrize("kind", ["phi3", "gemma2", "qwen2_moe", "olmoe", "cohere", "granite"])
def test_other_families_have_the_gradients_of_the_whole(kind: str, root: Path) -> None:
    """Gathered between matrices; scaled tables and logits; a shared expert; norms over all heads; branches in one."""
    model = folder_of(kind, root, **MORE.get(kind, {}))
    error, name = gradients_differ(model, DATA, 2, vocabulary=30)
    assert error < 1e-4, name


def test_a_wrong_division_shows_in_gradients(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(division, "_with_all_gradients", lambda module, _: module.forward)
    error, name = gradients_differ(folder_of("qwen3", root), DATA, 2, vocabulary=30)
    assert error > 1e-2
    assert "_norm" in name


def test_a_rank_reads_its_own_bytes_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = CountedReads(monkeypatch)
    part = part_of(folder_of("qwen3", root), TensorGroup(1, 2))
    assert read.num_bytes == bytes_of(part)


def test_a_rank_holds_and_exchanges_what_is_counted(root: Path) -> None:
    model, group = folder_of("llama", root, tie_word_embeddings=False), Unmet(1, 2)
    part = part_of(model, group)
    part.settle(CPU)
    (layers,) = part.chunks
    stages = [
        Stage(
            [layer],
            is_first=layer is layers[0],
            is_last=layer is layers[-1],
            precision=Precision.FP32,
            device=CPU,
            loss=divided(token_cross_entropy, group, part.vocabulary or 0),
        )
        for layer in layers
    ]
    tokens = torch.randint(200, (ROWS, LENGTH))
    value: Passed = tokens
    for stage in stages:
        value = stage.forward(0, value, tokens if stage.is_last else None)
    gradient = None
    for stage in reversed(stages):
        gradient = stage.backward(0, gradient)
    sizes = model.layer_sizes(LENGTH)
    assert sizes is not None
    n = ROWS * LENGTH
    counted = count(sizes, Batch(tokens=n, sequence_length=LENGTH, element_bytes=4, tensor=2))
    there_and_back = 2 * sum(each.collectives * each.gathered_bytes for each in counted)
    assert group.bytes_exchanged == (there_and_back + 2 * 3 * n * 4) // 2  # the loss has three numbers of each token
    # The last of the ranks has the odd token, as the busiest is counted.
    held = [sum(each.nbytes for _, each in stage.named_parameters()) for stage in stages]
    assert held == [4 * each.parameters for each in counted]


@pytest.mark.parametrize(
    ("kind", "changes", "ranks", "words"),
    [
        ("llama", {}, 4, "4 ranks cannot share 2 heads of keys and values equally; .* by 1, 2$"),
        ("llama", {"intermediate_size": 50}, 4, "2 heads of keys and values"),
        ("qwen3", {"intermediate_size": 51}, 2, r"51 columns of model.layers.\*.mlp.\w+_proj.weight equally; .* by 1$"),
        ("llama", {"attention_dropout": 0.1}, 2, "attention_dropout 0.1 would drop"),
        ("gpt2", {}, 2, "transformers brings no plan for it"),
        ("deepseek_v2", LATENT, 2, "divides .*kv_a_proj_with_mqa as mla_kv_a_proj, which is not known here"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(
    kind: str, changes: dict[str, Any], ranks: int, words: str, root: Path
) -> None:
    with pytest.raises(UserError, match=words) as raised:
        part_of(folder_of(kind, root, **changes), TensorGroup(0, ranks))
    assert raised.value.reason == "NotDivided"


def test_tokens_beyond_a_vocabulary_that_is_seen_in_the_layers_alone_are_refused(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 128}  # one is missing
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | sizes))
    given = Model(hugging_face=HuggingFaceModel(path=str(folder), weights=Weights.RANDOM), num_layers=4)
    wanted = job(root / "text", given, Shape(1, 2), layers=(4,))
    prepared = Preparation(config(wanted, stage=0, replica=0, tensor=0, folder=tmp_path), wanted)

    assert with_sizes(given).config is None
    assert prepared.batches is not None
    with pytest.raises(UserError, match="the vocabulary ends at 127"):
        prepared.batches.batch(1, 0, 0)


def test_what_a_plan_leaves_whole_is_said(root: Path) -> None:
    model = folder_of("deepseek_v3", root, **MORE["deepseek_v3"])
    (said,) = (each for each in part_of(model, TensorGroup(0, 2)).remarks if "leaves" in each)
    assert "model.layers.*.self_attn.q_proj.weight" in said
    assert not any("leaves" in each for each in part_of(folder_of("mixtral", root), TensorGroup(0, 2)).remarks)
