"""Compiled layers train as plain ones do, to rounding; what cannot be compiled is refused by name before step 1.

Most run through torch's tracing and its derivation of one backward function, without the C++ behind it: what a stage
sees of a layer is the same. One goes all the way.
"""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from pipelinejob.planning.dimensions import unrunnable
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Data, GptModel, Lora, Model, Parallelism, Precision, ScheduleSpec, Training
from pipelinejob.spec.training import Compile
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.stage import compiling
from support.training.gangs import Gang, plan
from support.training.pipelines import Job, run_threads, run_unsplit

# What the tracer does inside of torch, which hides it otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

GPT = Model(gpt=GptModel(num_layers=3, hidden_size=16, num_heads=2, dropout=0.1))
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
    ],
    ids=lambda changes: " ".join(changes) or "plain",
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
        runs[compile_] = Gang(tmp_path / compile_, made).start()
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
        (ScheduleName.ONE_F_ONE_B, {"data": 2, "sharding": "full"}, "Layers makes one function of a layer"),
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
    from transformers import LlamaConfig

    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=32).save_pretrained(tmp_path)
    model = Model(hugging_face=HuggingFaceModel(path=str(tmp_path), weights=Weights.RANDOM), num_layers=4)
    job = Job(text=text, model=model, stages=2, micro_batches=2, sequence_length=8, steps=1, compiles=True)

    whole, compiled = run_unsplit(job), run_threads(job)

    assert compiled.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, expected in whole.gradients.items():
        assert float((compiled.gradients[name] - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), name
