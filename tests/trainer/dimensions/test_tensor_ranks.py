"""A stage whose layers several processes share: they live and end together, and look like one stage from outside."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dimensions import Shape, job
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode, Termination
from pipelinejob.costs.layers import analytic_profile
from pipelinejob.models.counts import Batch, count
from pipelinejob.spec.job import Data, DecoderModel, Device, GptModel, Model, Precision, ScheduleSpec, Training
from pipelinejob_trainer.base.nesting import Passed
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.losses.divided_loss import divided
from pipelinejob_trainer.models.losses.loss import token_cross_entropy
from pipelinejob_trainer.models.part import build_part, num_layers
from pipelinejob_trainer.process.tensor_ranks import Ended, cause, merged
from pipelinejob_trainer.profile.memory import layer_memory
from pipelinejob_trainer.stage.stage import Stage
from support.local.processes import wait_until
from support.training.gangs import Gang, plan
from support.training.loops import replicated
from support.training.meetings import Unmet
from support.training.pipelines import run_processes


def endless(text: Path) -> Plan:
    data = Data(paths=(str(text),), sequence_length=16)
    return plan(4, tensor=2, data=data, training={"steps": 1_000_000}, checkpoint={"interval_steps": 0})


def children(gang: Gang, pod: str) -> list[int]:
    pid = gang.processes[pod].pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(map(int, found.split()))


def test_ranks_stop_together_go_on_and_end_with_one_that_is_killed(text: Path, make: Callable[[Plan], Gang]) -> None:
    gang = make(endless(text))
    gang.wait_for_step(2)
    shown = gang.get("job-r0-s0", "/metrics")
    both = [line for line in shown.splitlines() if line.startswith("pipelinejob_step{")]
    assert [f'tensor="{rank}"' in line for rank, line in enumerate(both)] == [True, True]
    assert shown.count("# TYPE pipelinejob_step gauge") == 1
    assert gang.get("job-r0-s0", "/readyz") == gang.get("job-r0-s0", "/healthz") == "ok\n"
    assert gang.progress("job-r0-s0").step >= 2

    gang.signal("job-r0-s0", signal.SIGTERM)

    assert gang.wait() == {"job-r0-s0": ExitCode.STOPPED}
    saved = gang.termination("job-r0-s0").step
    assert saved >= 2

    gang.start().wait_for_step(saved + 1)
    first, second = children(gang, "job-r0-s0")
    os.kill(second, signal.SIGKILL)

    assert gang.wait() == {"job-r0-s0": 137}
    assert gang.termination("job-r0-s0").message == "tensor rank 1 was ended by signal 9"
    wait_until(lambda: not Path(f"/proc/{first}").exists(), "the other rank is gone")
    assert f"[tensor 0] resumed from the checkpoint of step {saved}" in gang.logs()
    assert "[tensor 1] step 1/1000000" in gang.logs()


def words(code: int, reason: str) -> Termination:
    return Termination(exit_code=code, reason=reason, message="", step=1)


@pytest.mark.parametrize(
    ("codes", "counts"),
    [((0, 0), 0), ((75, 1), 1), ((64, 75), 0), ((75, 75), 0), ((143, 143), 0), ((75, 137, 1), 1)],
)
def test_of_several_endings_the_one_that_explains_the_others_counts(codes: tuple[int, ...], counts: int) -> None:
    ended = [Ended(rank, words(code, str(code))) for rank, code in enumerate(codes)]
    assert cause(ended).rank == counts


def test_metrics_of_several_ranks_stand_by_family() -> None:
    one = b'# HELP a A.\n# TYPE a gauge\na{tensor="0"} 1.0\n# HELP b B.\n# TYPE b counter\nb_total{tensor="0"} 2.0\n'
    other = one.replace(b'"0"', b'"1"')
    assert merged([one, other]) == (
        b'# HELP a A.\n# TYPE a gauge\na{tensor="0"} 1.0\na{tensor="1"} 1.0\n'
        b'# HELP b B.\n# TYPE b counter\nb_total{tensor="0"} 2.0\nb_total{tensor="1"} 2.0\n'
    )


@pytest.mark.parametrize("divides_tokens", [False, True], ids=["alike", "own"])
def test_what_is_dropped_leaves_all_ranks_with_the_same(divides_tokens: bool, text: Path, tmp_path: Path) -> None:
    sizes = GptModel(num_layers=6, hidden_size=16, num_heads=2, vocabulary_size=257, dropout=0.2)
    wanted = job(text, Model(gpt=sizes), Shape(1, 2, sequence_parallel=divides_tokens), steps=4)
    (one, of_one), (other, of_other) = run_processes(replicated, wanted, tmp_path, world=2)
    assert one == other
    assert len(of_one) > 6
    for name, tensor in of_one.items():
        assert torch.equal(tensor, of_other[name]), name


GPT = Model(gpt=GptModel(num_layers=2, hidden_size=96, num_heads=4, feed_forward_size=512, vocabulary_size=1000))
DECODER = Model(
    decoder=DecoderModel(
        num_layers=2, hidden_size=96, num_heads=4, num_key_value_heads=2, feed_forward_size=256, vocabulary_size=1000
    )
)
ROWS, LENGTH = 3, 64


def of_a_rank(model: Model, group: TensorGroup) -> list[Stage]:
    """Return a stage for each layer of a rank's part of a model."""
    part = build_part(model, DATA, stretches=[(0, num_layers(model))], seed=1, tensor_group=group)
    part.settle(CPU)
    (layers,) = part.chunks
    return [
        Stage(
            [layer],
            is_first=layer is layers[0],
            is_last=layer is layers[-1],
            precision=Precision.FP32,
            device=CPU,
            loss=divided(token_cross_entropy, group, 1000),
        )
        for layer in layers
    ]


DATA = Data(corpus="python-stdlib", sequence_length=LENGTH)
CPU = torch.device("cpu")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randint(1000, (2, ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    return both[0], both[1]


def is_whole(name: str) -> bool:
    of_matrices = ("feed_forward_out.bias", "attention_out.bias", "position.weight")
    return "norm" in name or name.endswith(of_matrices)


@pytest.mark.parametrize("divides_tokens", [False, True], ids=["heads", "tokens"])
@pytest.mark.parametrize(("model", "size"), [(GPT, 2), (GPT, 4), (DECODER, 2)], ids=["gpt-2", "gpt-4", "decoder-2"])
def test_a_pass_exchanges_what_is_counted(model: Model, size: int, divides_tokens: bool) -> None:
    group = Unmet(1, size, divides_tokens=divides_tokens)
    stages = of_a_rank(model, group)
    tokens, targets = batch()
    value: Passed = tokens
    for stage in stages:
        value = stage.forward(0, value, targets if stage.is_last else None)
    gradient = None
    for stage in reversed(stages):
        gradient = stage.backward(0, gradient)
    sizes = model.layer_sizes(LENGTH)
    assert sizes is not None
    n = ROWS * LENGTH
    counted = count(sizes, Batch(tokens=n, sequence_length=LENGTH, element_bytes=4, tensor=size))
    # A ring: of so many bytes each rank sends all but one part; as many collectives there as back.
    # The loss has three numbers of each token.
    there_and_back = 2 * sum(each.collectives * each.gathered_bytes for each in counted)
    # Of what all ranks hold whole, each has the gradient of its tokens.
    whole = [each for stage in stages for name, each in stage.named_parameters() if divides_tokens and is_whole(name)]
    gradients = sum(2 * (size - 1) * each.nbytes // size for each in whole)
    assert group.bytes_exchanged == (there_and_back + 2 * 3 * n * 4) * (size - 1) // size + gradients


@pytest.mark.parametrize("divides_tokens", [False, True], ids=["heads", "tokens"])
@pytest.mark.parametrize("model", [GPT, DECODER], ids=["gpt", "decoder"])
def test_a_rank_holds_what_is_counted(model: Model, divides_tokens: bool) -> None:
    training = Training(steps=1)
    schedule = ScheduleSpec(micro_batches=4, micro_batch_size=ROWS)
    counted = analytic_profile(
        model, DATA, schedule, training, device=Device.CPU, tensor=2, is_sequence_parallel=divides_tokens
    ).layers
    stages = of_a_rank(model, Unmet(0, 2, divides_tokens=divides_tokens))
    tokens, targets = batch()
    for _ in range(2):  # the first makes gradients
        measured, _ = layer_memory(stages, tokens, targets, is_split=False)
    few = LENGTH * (8 + 4 * (2 * 2 + 4) * ROWS)  # beside what grows with the width: see test_counts.py
    for cost, found, stage in zip(counted, measured, stages, strict=True):
        parameters = sum(each.nbytes for _, each in stage.named_parameters())
        assert cost.parameter_bytes == parameters
        assert cost.activation_bytes == pytest.approx(found.kept, abs=few), cost.name
        if not stage.is_last:
            assert cost.output_bytes == found.output
