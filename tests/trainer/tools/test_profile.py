"""What a profile is put together from: levels of memory, layers played side by side, an empty pipeline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from pipelinejob.costs.layers import kept_bytes
from pipelinejob.planning.planner import make_plan
from pipelinejob.spec.job import Data, GptModel, Model, Parallelism, PipelineJobSpec, Precision, ScheduleSpec, Training
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from pipelinejob_trainer.models.part import LayerEntry, build_part
from pipelinejob_trainer.profile.layers import Text, layer_costs
from pipelinejob_trainer.profile.lockstep import Alone
from pipelinejob_trainer.profile.memory import layer_memory
from pipelinejob_trainer.profile.stopwatch import Stopwatch
from pipelinejob_trainer.profile.workers import Worker, first_worker
from pipelinejob_trainer.runtime.device_memory import watching
from pipelinejob_trainer.stage.stage import Stage
from support.local.local_cli import children, wait_until_gone
from support.local.processes import wait_until
from support.training.pipelines import run_processes
from support.training.ranks import overheads_of

CPU = torch.device("cpu")
WIDTH, ROWS = 64, 1024
OUTPUT = 4 * ROWS * WIDTH  # bytes of what a layer gives


def plan(**others):
    given = {"model": Model(gpt=GptModel(num_layers=2, hidden_size=32, num_heads=2)), "device": "cpu"}
    spec = PipelineJobSpec(
        data=Data(corpus="python-stdlib", sequence_length=32),
        schedule=ScheduleSpec(name="1F1B", micro_batches=4, micro_batch_size=2),
        training=Training(steps=1),
        **{"parallelism": Parallelism(pipeline=2), **given, **others},
    )
    return make_plan(namespace="default", name="job", spec=spec)


def test_levels_of_memory_are_those_of_what_was_allocated_between_marks() -> None:
    with watching(CPU) as watch:
        watch.mark()
        kept = torch.empty(1000, dtype=torch.float64)
        temporary = torch.empty(3000, dtype=torch.float64)
        del temporary
        watch.mark()
        del kept
        watch.mark()

    first, second, third = watch.levels()
    assert (first.held, second.held, third.held) == (0, 8000, 0)
    assert (second.peak, third.peak) == (32000, 8000)


class Squared(nn.Module):
    """Keeps what it received, for the gradient of a square, and for that of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).square()


def chain(*, is_split: bool) -> list[Stage]:
    entries = [LayerEntry(index=index, name="squared", module=Squared()) for index in (1, 2)]
    for entry in entries:
        entry.module.weight.grad = torch.zeros(WIDTH, WIDTH)
    return [
        Stage([entry], is_first=False, is_last=False, precision=Precision.FP32, device=CPU, is_split=is_split)
        for entry in entries
    ]


def test_a_layer_keeps_what_its_gradients_need() -> None:
    """It keeps what it received and the product that is squared; between the halves what it received and the
    product's gradient, from which the weight's is made."""
    received = torch.ones(ROWS, WIDTH)

    whole, _ = layer_memory(chain(is_split=False), received, received, is_split=False)
    split, output = layer_memory(chain(is_split=True), received, received, is_split=True)

    assert [layer.kept for layer in whole] == [layer.kept for layer in split] == [2 * OUTPUT] * 2
    assert [layer.between for layer in whole] == [0, 0]
    assert [layer.between for layer in split] == [2 * OUTPUT] * 2
    assert [layer.output for layer in whole] == [OUTPUT] * 2
    # the gradient of what it gave is counted as its own while it works, and it makes others of
    # that size
    assert all(2 * OUTPUT <= layer.working <= 4 * OUTPUT for layer in (*whole, *split))
    assert output.shape == (ROWS, WIDTH)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_what_goes_around_the_blocks_of_a_folders_model_is_measured_by_itself(tmp_path: Path, kind: str) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    AutoConfig.for_model(kind, **sizes, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    model = Model(hugging_face=HuggingFaceModel(path=str(tmp_path), weights=Weights.RANDOM), num_layers=4)
    made = plan(model=model)
    tokens = torch.zeros(2, 32, dtype=torch.int64)
    (layers,) = build_part(model, made.data, stretches=[(0, 4)], seed=1).chunks
    embedded = layers[0].module(tokens)
    usual = layers[1].module(embedded)

    with layers[1].runner.hollow(1):
        assert torch.equal(layers[1].module(embedded), embedded)
    assert torch.equal(layers[1].module(embedded), usual)

    text = Text(tokens=tokens, targets=tokens)
    costs = layer_costs(made, text, Stopwatch(CPU, shares_processors=False), is_split=False, neighbours=Alone())

    assert len(costs.layers) == 4
    assert costs.around_s > 0
    assert all(layer.forward_s >= 0 for layer in costs.layers)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2"])
def test_what_all_blocks_of_a_folders_model_keep_is_counted_once(tmp_path: Path, kind: str) -> None:
    """Tables of rotary positions, and masks: a stage of five blocks holds them once for each micro-batch."""
    sizes = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16} if kind == "gemma2" else {}
    AutoConfig.for_model(kind, **sizes, **heads, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    model = Model(hugging_face=HuggingFaceModel(path=str(tmp_path), weights=Weights.RANDOM), num_layers=7)
    made, tokens = plan(model=model), torch.zeros(2, 32, dtype=torch.int64)
    text = Text(tokens=tokens, targets=tokens)
    costs = layer_costs(made, text, Stopwatch(CPU, shares_processors=False), is_split=False, neighbours=Alone())

    (layers,) = build_part(model, made.data, stretches=[(1, 6)], seed=1).chunks
    stage = Stage(layers, is_first=False, is_last=False, precision=Precision.FP32, device=CPU)
    for _, parameter in stage.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
    (five,), _ = layer_memory([stage], torch.zeros(2, 32, 32), tokens, is_split=False)

    assert kept_bytes(costs.layers[1:6]) == pytest.approx(five.kept, rel=0.01)


def test_seats_are_written_as_they_are_read() -> None:
    assert Worker.parse(str(Worker(rank=1, size=4, port=29500))) == Worker(rank=1, size=4, port=29500)


def test_one_process_measures_for_one_stage_and_for_gpus() -> None:
    assert first_worker(plan(parallelism=Parallelism(pipeline=1))) is None
    assert first_worker(plan(device="gpu")) is None
    assert first_worker(plan()) is not None


def test_an_empty_pipeline_tells_both_ranks_what_links_actions_and_steps_take() -> None:
    first, second = run_processes(overheads_of, plan(), 200_000, world=2)

    assert first == second
    assert 0 <= first.link_s < 0.1
    assert 1e7 < first.link_bytes_per_s < 1e12
    assert 0 < first.action_s < 0.1
    assert 0 < first.step_s < 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one processor there is nobody to measure beside")
def test_those_who_measure_beside_end_with_the_first_however_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(plan().to_json())
    first = subprocess.Popen(
        [sys.executable, "-m", "pipelinejob_trainer", "profile", "--plan", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: children(first.pid), "another process to be started")
    others = children(first.pid)

    first.kill()
    first.wait()

    wait_until_gone(others)
