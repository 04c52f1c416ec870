"""Adapters of low rank: what PEFT trains in one process, split over stages."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import peft
import pytest
import torch
from torch import nn

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Data, GptModel, Lora, Model, Precision, Training
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.lora import adapted_modules, check_found, combined, digest_of, stirred
from pipelinejob_trainer.models.part import Part, build_part, num_layers
from pipelinejob_trainer.training.checks.adapters import check_targets
from support.training.pipelines import Job, Outcome, Threads, merged, run_steps, run_unsplit

GPT = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2, tie_embeddings=True))
DATA = Data(paths=("unused",), sequence_length=16)
LORA = Lora(rank=3, alpha=5.0, targets=("qkv", "feed_forward_*", "layers.2.attention_out"))
NUM_TARGETS = 4 * 3 + 1
BOUND = 2e-6  # of a gradient's error, relative to the largest entry of its tensor


def whole(model: Model = GPT, lora: Lora | None = LORA, seed: int = 7) -> Part:
    return build_part(model, DATA, stretches=[(0, num_layers(model))], seed=seed, lora=lora)


def layers_of(part: Part) -> list[tuple[int, nn.Module]]:
    return [(layer.index, layer.module) for layer in part.layers]


def trained(job: Job) -> Outcome:
    """Train in stages, from adapters that all have gradients."""
    threads = Threads(job)
    with ExitStack() as stack:
        for rank in threads.ranks:
            stack.enter_context(stirred(layers_of(rank.part), job.seed))
        return merged(threads.run(lambda rank: run_steps(job, rank, barrier=threads.meet)))


def trained_by_peft(job: Job) -> Outcome:
    """Train the whole model with PEFT's adapters, which get the values of ours; give gradients our names."""
    assert job.lora is not None
    ours, part = whole(job.model, job.lora, job.seed), whole(job.model, None, job.seed)
    names = [name for each in layers_of(ours) for name, _ in adapted_modules(*each)]
    root = nn.Module()
    root.layers = nn.ModuleDict({str(index): layer for index, layer in layers_of(part)})
    config = peft.LoraConfig(
        r=job.lora.rank,
        lora_alpha=job.lora.alpha,
        lora_dropout=job.lora.dropout,
        use_rslora=job.lora.rank_stabilised,
        target_modules=names,
    )
    peft.inject_adapter_in_model(config, root)
    with stirred(layers_of(ours), job.seed), torch.no_grad():
        for name, module in (found for each in layers_of(ours) for found in adapted_modules(*each)):
            theirs = root.get_submodule(name)
            theirs.lora_A["default"].weight.copy_(module.lora_A)
            theirs.lora_B["default"].weight.copy_(module.lora_B)
    outcome = run_unsplit(job, part)
    outcome.gradients = {
        name.removesuffix(".default.weight"): each for name, each in outcome.gradients.items() if ".lora_" in name
    }
    return outcome


def assert_equal(one: Outcome, other: Outcome, *, bound: float = BOUND) -> None:
    assert one.losses == pytest.approx(other.losses, rel=bound)
    assert one.gradients.keys() == other.gradients.keys()
    for name, expected in other.gradients.items():
        largest = float(expected.abs().max())
        assert largest > 0, name
        assert float((one.gradients[name] - expected).abs().max()) <= bound * largest, name


def job(text: Path, **changes: object) -> Job:
    return replace(Job(text=text, model=GPT, stages=2, lora=LORA), **changes)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
def test_a_split_model_trains_the_adapters_that_peft_trains(text: Path, stages: int, name: ScheduleName) -> None:
    split = job(text, stages=stages, schedule=name)

    outcome = trained(split)

    assert len(outcome.gradients) == 2 * NUM_TARGETS
    assert_equal(outcome, trained_by_peft(split))


@pytest.mark.parametrize(
    "changes",
    [
        {"recompute": True},
        {"recompute": True, "schedule": ScheduleName.ZB_H1},
        {"schedule": ScheduleName.ZB_V},
        {"schedule": ScheduleName.DUALPIPE},
        {"schedule": ScheduleName.INTERLEAVED, "chunks": 2},
        {"replicas": 2},
        {"lora": LORA.model_copy(update={"dropout": 0.25})},
        {"lora": LORA.model_copy(update={"rank_stabilised": True})},
        {"lora": Lora(targets=("layers.4.*_in",))},  # two stages of three have nothing to train
    ],
    ids=str,
)
def test_so_it_does_under_other_schedules_and_settings(text: Path, changes: dict[str, object]) -> None:
    split = job(text, **changes)

    assert_equal(trained(split), trained_by_peft(split))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return a tied llama of a folder, with random weights."""
    from transformers import LlamaConfig

    path = tmp_path_factory.mktemp("llama")
    LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    ).save_pretrained(path)
    return Model(hugging_face=HuggingFaceModel(path=str(path), weights=Weights.RANDOM), num_layers=6)


@pytest.mark.parametrize(
    ("stages", "name"), [(2, ScheduleName.ZB_H1), (3, ScheduleName.ONE_F_ONE_B)], ids=["two", "three"]
)
def test_a_transformers_model_trains_the_adapters_that_peft_trains(
    text: Path, llama: Model, stages: int, name: ScheduleName
) -> None:
    lora = Lora(rank=3, alpha=5.0, targets=("q_proj", "v_proj", "layers.2.mlp.*"))
    split = job(text, model=llama, stages=stages, schedule=name, lora=lora)

    outcome = trained(split)

    assert len(outcome.gradients) == 2 * (4 * 2 + 3)
    assert_equal(outcome, trained_by_peft(split))


class Alone:
    """A gang of one rank."""

    def sum(self, values: torch.Tensor) -> list[float]:
        return [float(each) for each in values.tolist()]


def test_experts_that_lie_in_one_tensor_are_said_to_have_no_adapter(tmp_path: Path) -> None:
    """Names of experts' matrices name only the shared expert here, whose matrices are layers of their own."""
    from transformers import Qwen2MoeConfig

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    Qwen2MoeConfig(**sizes, **experts, num_key_value_heads=2).save_pretrained(tmp_path)
    model = Model(hugging_face=HuggingFaceModel(path=str(tmp_path), weights=Weights.RANDOM), num_layers=4)
    lora = Lora(targets=("gate_proj", "up_proj", "down_proj"))
    part = whole(model, lora)
    rank = SimpleNamespace(plan=SimpleNamespace(training=Training(steps=1, lora=lora)), part=part, owns=lambda _: True)

    remark = check_targets(cast("Any", rank), cast("Any", Alone()))

    names = {f"layers.{layer}.mlp.experts.{name}" for layer in (1, 2) for name in ("gate_up_proj", "down_proj")}
    assert part.adapters.stacked == names
    assert remark is not None
    assert "of the model's parameters are experts" in remark


def test_of_a_model_without_experts_nothing_is_said() -> None:
    assert not whole().adapters.stacked


def test_bf16_is_as_close_as_bf16_is(text: Path) -> None:
    split = job(text, precision=Precision.BF16)

    assert_equal(trained(split), trained_by_peft(split), bound=1e-2)


def test_adapters_begin_alike_under_every_split() -> None:
    parameters = whole().named_parameters()
    for first, end in ((0, 3), (3, 6)):
        for name, each in build_part(GPT, DATA, stretches=[(first, end)], seed=7, lora=LORA).named_parameters().items():
            assert torch.equal(each, parameters[name]), name

    assert not torch.equal(parameters["layers.1.qkv.lora_A"], parameters["layers.2.qkv.lora_A"])
    assert not torch.equal(parameters["layers.1.qkv.lora_A"], whole(seed=8).named_parameters()["layers.1.qkv.lora_A"])


def test_weights_are_those_of_the_model_without_adapters_and_frozen() -> None:
    plain, part = whole(lora=None).named_parameters(), whole()
    parameters = part.named_parameters()

    assert part.adapters.base == plain.keys()
    assert all(torch.equal(parameters[name], each) for name, each in plain.items())
    assert {name for name, each in parameters.items() if each.requires_grad} == parameters.keys() - plain.keys()
    assert set(part.kept_parameters()) == parameters.keys() - plain.keys()


def test_a_star_means_every_matrix_but_the_heads() -> None:
    part = whole(Model(gpt=GptModel(num_layers=1, hidden_size=16, num_heads=2)), Lora(targets=("*",)))

    assert [name for each in layers_of(part) for name, _ in adapted_modules(*each)] == [
        "layers.1.qkv",
        "layers.1.attention_out",
        "layers.1.feed_forward_in",
        "layers.1.feed_forward_out",
    ]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("logits", "names layers.5.logits, which is the head"),
        ("token", "names layers.0.token, which is an embedding"),
        ("layers.*", "names layers.0.token, which is an embedding"),
    ],
)
def test_embedding_and_head_are_refused(target: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        whole(lora=Lora(targets=("qkv", target)))

    assert refused.value.reason == "BadTarget"
    assert "write * for all" in str(refused.value)


def test_a_target_that_names_nothing_on_any_stage_is_refused_by_name() -> None:
    adapters = whole(lora=Lora(targets=("qkv", "q_proj"))).adapters
    assert adapters.found == {"qkv": 4, "q_proj": 0}

    with pytest.raises(UserError, match="'q_proj' names no linear layer of the model") as refused:
        check_found(adapters.found, adapters.linear)

    assert "attention_out, feed_forward_in, feed_forward_out, qkv" in str(refused.value)


@pytest.mark.parametrize(
    ("entrypoint", "target", "words"),
    [
        ("layers.adapted_models:with_torchs_attention", "out_proj", "belongs to torch.nn.MultiheadAttention"),
        ("layers.adapted_models:tied_matrices", "inner", "shares its weight with another layer"),
        ("layers.adapted_models:parametrized", "inner", "made of others at each call"),
    ],
)
def test_layers_of_ones_own_are_refused_where_an_adapter_would_be_wrong(
    entrypoint: str, target: str, words: str
) -> None:
    model = Model(entrypoint=entrypoint, num_layers=4)
    with pytest.raises(UserError, match=words):
        whole(model, Lora(targets=(target,)))


def test_modules_that_a_function_gives_twice_are_adapted_once() -> None:
    model = Model(entrypoint="layers.adapted_models:kept", num_layers=4)
    first, second = (whole(model, Lora(targets=("inner",))) for _ in range(2))

    assert first.adapters == second.adapters
    assert first.adapters.base
    assert first.named_parameters()["layers.1.inner.lora_A"] is second.named_parameters()["layers.1.inner.lora_A"]


def test_a_base_has_one_digest_however_it_is_divided() -> None:
    parts = [build_part(GPT, DATA, stretches=[each], seed=7, lora=LORA) for each in ((0, 2), (2, 5), (5, 6))]
    named = [[(n, p) for n, p in part.named_parameters().items() if n in part.adapters.base] for part in parts]
    head = [(name, each) for name, each in named[2] if not name.startswith("layers.0.")]  # the tied table counts once

    assert combined(map(digest_of, (*named[:2], head))).hex() == whole().base_digest()
    assert whole(seed=8).base_digest() != whole().base_digest()
