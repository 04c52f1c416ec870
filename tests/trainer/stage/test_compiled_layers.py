"""Compiled layers train as plain ones do, to rounding; what cannot be compiled is refused by name before step 1.

Most run through torch's tracing and its derivation of one backward function, without the C++
behind it: what a stage sees of a layer is the same. One goes all the way.
"""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from pipelinejob.contract.plan import Plan
from pipelinejob.planning.dimensions import unrunnable
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import (
    Data,
    DecoderModel,
    GptModel,
    Lora,
    Model,
    Parallelism,
    Precision,
    ScheduleSpec,
    Sharding,
    Training,
)
from pipelinejob.spec.training import Compile
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.decoder.layers import Block
from pipelinejob_trainer.stage import compiling
from support.training.gangs import FromScratch, Gang, plan
from support.training.loops import train
from support.training.pipelines import Job, run_threads, run_unsplit

# What the tracer does inside of torch, which hides it otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

GPT = Model(gpt=GptModel(num_layers=3, hidden_size=16, num_heads=2, dropout=0.1))
_SIZES = {"num_layers": 3, "hidden_size": 16, "num_heads": 4, "num_key_value_heads": 2, "feed_forward_size": 32}
DECODER = Model(
    decoder=DecoderModel(**_SIZES, head_norms=True, sliding_window=5, rope_scaling={"kind": "llama3", "factor": 4})
)
EXPERTS = Model(decoder=DecoderModel(**_SIZES, experts={"num": 4, "per_token": 2, "auxiliary_loss": 0.1}))
NESTING = Model(entrypoint="own_skips:layers", num_layers=8, arguments={"width": "16", "depth": "3"})
_NAMED = {id(DECODER): "decoder", id(EXPERTS): "experts", id(NESTING): "nesting"}
BOUND = {Precision.FP32: 1e-4, Precision.BF16: 3e-2}  # of a gradient's largest entry


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiling.prepare(torch.device("cpu"))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recompute": True},
        {"recompute": 1},
        {"schedule": ScheduleName.INTERLEAVED, "stages": 2, "chunks": 2},
        {"precision": Precision.BF16},
        {"lora": Lora(targets=("*.qkv",), rank=2)},
        {"unequal_rows": (2, 2, 2, 1)},
        {"replicas": 2, "micro_batches": 2},
        {"model": DECODER},
        {"model": EXPERTS, "recompute": 1},
        {"model": NESTING, "stages": 3},
    ],
    ids=lambda changes: " ".join(_NAMED.get(id(each), name) for name, each in changes.items()) or "plain",
)
def test_compiled_layers_have_the_gradients_of_plain_ones(text: Path, changes: dict[str, object]) -> None:
    given = {"model": GPT, "stages": 2, "micro_batches": 4, "steps": 1, **changes}
    job = Job(text=text, sequence_length=8, compiles=True, **given)

    whole, compiled = run_unsplit(job), run_threads(job)

    bound = BOUND[job.precision]
    assert compiled.losses == pytest.approx(whole.losses, rel=bound / 10)
    assert compiled.gradients.keys() == whole.gradients.keys()
    for name, expected in whole.gradients.items():
        assert float((compiled.gradients[name] - expected).abs().max()) <= bound * float(expected.abs().max()), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_run_of_compiled_layers_says_that_they_are_compiled_and_has_the_losses_of_a_plain_one(tmp_path: Path) -> None:
    schedule = ScheduleSpec(micro_batches=2, micro_batch_size=2)
    runs = {}
    for compile_ in Compile:
        made = plan(2, 2, schedule=schedule, training={"steps": 3, "compile": compile_})
        runs[compile_] = Gang(tmp_path / compile_, made, machines=FromScratch()).start()  # compilers have threads
        runs[compile_].finish()

    assert runs[Compile.LAYERS].losses() == pytest.approx(runs[Compile.OFF].losses(), rel=1e-5)
    assert "layers compiled, in" in runs[Compile.LAYERS].logs()
    slowest, plain = (max(each.step_s for each in runs[which].steps()) for which in (Compile.LAYERS, Compile.OFF))
    assert slowest < max(1.0, 10 * plain)  # none of them compiles


def test_without_a_compiler_it_is_refused_before_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)

    with pytest.raises(UserError, match=r"spec.training.compile: Layers needs a C\+\+ compiler .* no g\+\+ is in"):
        compiling.prepare(torch.device("cpu"))


@pytest.mark.parametrize(
    ("schedule", "degrees", "why"),
    [
        (ScheduleName.ONE_F_ONE_B, {"tensor": 2}, "Layers compiles whole layers"),
        (ScheduleName.ZB_H1, {}, "ZB-H1 has backward passes in halves"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(
    schedule: ScheduleName, degrees: dict[str, object], why: str
) -> None:
    training = Training(steps=1, compile=Compile.LAYERS)
    parallelism = Parallelism.model_validate({"pipeline": 2, **degrees})

    errors = [str(each) for each in unrunnable(GPT, training, schedule, parallelism, Data(corpus="python-stdlib"))]

    assert any(each.startswith(f"spec.training.compile: {why}") for each in errors)


def test_what_the_compiler_fails_on_is_named_with_its_layer() -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    said = compiling.not_compiled(3, torch.nn.Linear(1, 1), InternalTorchDynamoError("a strange thing\nand more"))

    assert str(said).startswith("spec.training.compile: layer 3 (Linear) cannot be compiled here: a strange thing;")
    assert compiling.not_compiled(3, torch.nn.Linear(1, 1), ValueError("the layer's own")) is None


@pytest.mark.usefixtures("traced")
def test_blocks_of_a_folders_model_are_compiled_too(text: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=32).save_pretrained(tmp_path)
    model = Model(hugging_face=HuggingFaceModel(path=str(tmp_path), weights=Weights.RANDOM), num_layers=4)
    job = Job(text=text, model=model, stages=2, micro_batches=2, sequence_length=8, steps=1, compiles=True)

    whole, compiled = run_unsplit(job), run_threads(job)

    assert compiled.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, expected in whole.gradients.items():
        assert float((compiled.gradients[name] - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), name


@pytest.mark.usefixtures("traced")
def test_a_compiled_block_of_the_decoder_keeps_documents_apart_as_a_plain_one() -> None:
    block = Block(DECODER.decoder)
    positions = torch.cat([torch.arange(3), torch.arange(6)]).expand(2, 9)
    hidden = torch.randn(2, 9, 16)

    plain, _ = block((hidden, positions))
    compiled, _ = torch.compile(block, dynamic=False)((hidden, positions))

    assert torch.allclose(compiled, plain, atol=1e-6)
    assert not torch.allclose(block(hidden), plain, atol=1e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_replicas_train_as_plain_ones_whatever_they_share(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ).save_pretrained(folder)
    folders = Model(hugging_face=HuggingFaceModel(path=str(folder), weights=Weights.RANDOM), num_layers=4)
    cases = [(DECODER, 5, each) for each in Sharding] + [(folders, 4, Sharding.FULL)]

    def plans(compile_: Compile) -> list[Plan]:
        data = Data(paths=(str(text),), sequence_length=16)
        made = [
            (plan(layers, replicas=2, model=model, data=data, training={"steps": 4, "compile": compile_}), sharding)
            for model, layers, sharding in cases
        ]
        return [
            each.model_copy(update={"parallelism": each.parallelism.model_copy(update={"sharding": sharding})})
            for each, sharding in made
        ]

    plain = train(*plans(Compile.OFF), folder=tmp_path / "plain")
    compiled = train(*plans(Compile.LAYERS), folder=tmp_path / "compiled")

    for one, other in zip(compiled, plain, strict=True):
        assert one.refused is None
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
        assert len(one.losses) == 4
