"""The same lists on torch's own runtime: gradients and losses with the same bits, or why torch cannot play them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse
from pipelinejob.spec.job import GptModel, Model, Precision
from pipelinejob_trainer.base.errors import UserError
from support.training.pipelines import CPU, Job, Outcome, run_gloo, run_unsplit
from support.training.torch_runtime import TorchRuntime, reason_against
from support.training.torchranks import run_torch

# Of the last stage's forwards, micro-batch 1's comes first: torch counts losses, so it must know
# them by other numbers.
CROSSED = parse("F1 F0 I1 W1 B0\nF1 F0 I1 I0 W1 W0\n")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Sums as the ranks' processes add them up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_equal(one: Outcome, other: Outcome) -> None:
    assert one.losses == other.losses
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        assert torch.equal(gradient, other.gradients[name]), name


@pytest.mark.parametrize(
    ("schedule", "ranks"),
    [
        (ScheduleName.ONE_F_ONE_B, 4),
        (ScheduleName.INTERLEAVED, 2),
        (ScheduleName.ZB_H1, 3),
        (ScheduleName.ZB_V, 2),
        (ScheduleName.HANAYO, 2),
    ],
)
def test_torch_gives_the_bits_that_our_runtime_gives(text: Path, schedule: ScheduleName, ranks: int) -> None:
    job = Job(text=text, schedule=schedule, stages=ranks, micro_batches=6)

    assert_equal(run_torch(job), run_gloo(job))


@pytest.mark.usefixtures("_one_thread")
def test_torch_gives_the_bits_of_the_unsplit_model(text: Path) -> None:
    job = Job(text=text, schedule=CROSSED, stages=2, micro_batches=2)

    # The unsplit model adds micro-batch 0's gradients first; of two, the sum is the same either
    # way.
    assert_equal(run_torch(job), run_unsplit(job))


def test_dropout_and_bf16_are_the_same_there(text: Path) -> None:
    model = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2, dropout=0.2))
    job = Job(text=text, model=model, stages=2, micro_batches=3, precision=Precision.BF16)

    assert_equal(run_torch(job), run_gloo(job))


def schedule_of(name: ScheduleName) -> Schedule:
    return catalogue.build(name, Setting(num_ranks=2, num_micro_batches=4))


@pytest.mark.parametrize(
    ("schedule", "rows", "reason"),
    [
        (parse("route 0 1: 0\nroute 1 0: 1\nF0 F1 B1 B0\nF1 F0 B0 B1\n"), (1, 1), "one rank for each stage"),
        (schedule_of(ScheduleName.PIPEDREAM), (1,) * 4, "knows no updates within a step"),
        (schedule_of(ScheduleName.ONE_F_ONE_B).forward_only(), (1,) * 4, "no list without backward passes"),
        (schedule_of(ScheduleName.ONE_F_ONE_B), (2, 2, 2, 1), "one shape for all micro-batches"),
    ],
)
def test_what_torch_cannot_play_is_refused_with_the_reason(
    schedule: Schedule, rows: tuple[int, ...], reason: str
) -> None:
    assert reason in (reason_against(schedule, rows) or "")
    with pytest.raises(UserError, match=f"{reason}.*use this project's runtime"):
        TorchRuntime(schedule=schedule, rank=0, chunks=(), batches=None, rows=rows, seed=0, device=CPU)


def test_what_torch_can_play_is_not_refused() -> None:
    assert reason_against(schedule_of(ScheduleName.ONE_F_ONE_B), (1,) * 4) is None
