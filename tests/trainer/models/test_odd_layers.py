"""Layers with people's habits train as in a plain loop, whatever the split, the schedule and recomputation.

Losses, gradients and what forwards leave in buffers are compared with one process that runs one
micro-batch after the other.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layers import odd_layers
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Model, Precision
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.master_weights import to_training
from pipelinejob_trainer.models.part import build_part, num_layers
from support.training.pipelines import Job, Outcome, Threads, keep_gradients, merged, run_steps, unsplit_loss

WAYS = [
    (ScheduleName.ONE_F_ONE_B, 3, False),
    (ScheduleName.ONE_F_ONE_B, 3, True),
    (ScheduleName.ZB_H1, 3, False),
    (ScheduleName.ZB_V, 2, True),
    (ScheduleName.DUALPIPE_V, 3, False),
]
BOUND = 2e-6  # of a gradient's error, relative to the largest entry of its tensor


def job(text: Path, kind: str, *, first: str = "plain", **changes: object) -> Job:
    model = Model(entrypoint="layers.odd_layers:layers", num_layers=7, arguments={"kind": kind, "first": first})
    base = Job(text=text, model=model, micro_batches=6, micro_batch_size=2, sequence_length=6)
    return replace(base, **changes)


def plain(job: Job) -> tuple[Outcome, dict[str, torch.Tensor]]:
    """Run one micro-batch after the other."""
    part = build_part(job.model, job.data, stretches=[(0, num_layers(job.model))], seed=job.seed)
    for layer in part.layers:
        to_training(layer.module)
    outcome = Outcome()
    for step in range(1, job.steps + 1):
        losses = []
        for sample in range(job.micro_batches):
            loss = unsplit_loss(job, part, step, sample)
            loss.backward()
            losses.append(loss.detach())
        outcome.losses.append(float(torch.stack(losses).sum()))
        keep_gradients(part, outcome)
    return outcome, part.named_buffers()


_PLAIN: dict[str, tuple[Outcome, dict[str, torch.Tensor]]] = {}


def expected(job: Job) -> tuple[Outcome, dict[str, torch.Tensor]]:
    key = repr((job.model.arguments, job.precision))
    if key not in _PLAIN:
        _PLAIN[key] = plain(job)
    return _PLAIN[key]


def split(job: Job, *, evaluate_between: bool = False) -> tuple[Outcome, dict[str, torch.Tensor]]:
    threads = Threads(job)
    outcomes = threads.run(lambda rank: run_steps(job, rank, barrier=threads.meet, evaluate_between=evaluate_between))
    return merged(outcomes), {k: v for rank in threads.ranks for k, v in rank.part.named_buffers().items()}


def assert_plain(job: Job, **options: bool) -> None:
    (here, my_buffers), (there, buffers) = split(job, **options), expected(job)
    assert here.losses == pytest.approx(there.losses, rel=BOUND)
    assert here.gradients.keys() == there.gradients.keys()
    for name, gradient in there.gradients.items():
        error = (here.gradients[name] - gradient).abs()
        assert not error.numel() or float(error.max()) <= BOUND * float(gradient.abs().max()), name
    assert my_buffers.keys() == buffers.keys()
    assert [name for name in buffers if not torch.equal(my_buffers[name], buffers[name])] == []


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, of a checkpoint without use
@pytest.mark.parametrize("kind", [kind for kind in odd_layers.KINDS if kind != "Functional"])
@pytest.mark.parametrize(("schedule", "stages", "recompute"), WAYS)
def test_it_trains_as_in_a_plain_loop(
    text: Path, kind: str, schedule: ScheduleName, stages: int, recompute: bool
) -> None:
    assert_plain(job(text, kind, schedule=schedule, stages=stages, recompute=recompute))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", [kind for kind in odd_layers.KINDS if kind not in {"Functional", "Double"}])
@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
def test_it_does_so_in_bf16(text: Path, kind: str, schedule: ScheduleName) -> None:
    assert_plain(job(text, kind, schedule=schedule, stages=3, precision=Precision.BF16))


@pytest.mark.parametrize("recompute", [False, True])
def test_torch_func_is_taken_where_backward_passes_are_whole(text: Path, recompute: bool) -> None:
    assert_plain(job(text, "Functional", stages=3, recompute=recompute))


def test_torch_func_is_refused_where_they_come_in_halves(text: Path) -> None:
    with pytest.raises(UserError, match=r"layer 2 \(Functional\) derives by torch.func") as caught:
        split(job(text, "Functional", schedule=ScheduleName.ZB_H1, stages=3))
    assert caught.value.reason == "NotInHalves"


@pytest.mark.parametrize("first", ["shift", "hooked"])
@pytest.mark.parametrize(("schedule", "stages", "recompute"), [*WAYS, (ScheduleName.ZB_H1, 1, False)])
def test_token_ids_belong_to_the_first_layer_and_hooks_on_what_it_gives_are_called_once(
    text: Path, first: str, schedule: ScheduleName, stages: int, recompute: bool
) -> None:
    assert_plain(job(text, "Base", first=first, schedule=schedule, stages=stages, recompute=recompute))


@pytest.mark.parametrize("kind", ["Normed", "OldSpectral", "Average", "LargeAverage", "FrozenNorm", "Dropped"])
def test_evaluation_leaves_nothing_behind(text: Path, kind: str) -> None:
    assert_plain(job(text, kind, stages=3), evaluate_between=True)
