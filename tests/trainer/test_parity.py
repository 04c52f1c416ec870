"""A split model is the unsplit model: same losses, same gradients."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelinejob.spec import Model, Precision, ScheduleName
from pipelines import Job, Outcome, run_gloo, run_threads, run_unsplit


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("schedule", list(ScheduleName))
@pytest.mark.parametrize("stages", [1, 2, 4, 6])
def test_a_split_model_gives_the_unsplit_models_bits(text: Path, schedule: ScheduleName, stages: int) -> None:
    job = Job(text=text, stages=stages, schedule=schedule)

    assert_same_bits(run_threads(job), run_unsplit(job))


@pytest.mark.parametrize("schedule", list(ScheduleName))
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_fewer_micro_batches_than_stages_give_the_unsplit_models_bits(
    text: Path, schedule: ScheduleName, micro_batches: int
) -> None:
    job = Job(text=text, schedule=schedule, micro_batches=micro_batches)

    assert_same_bits(run_threads(job), run_unsplit(job))


def test_micro_batches_add_up_to_the_gradient_of_one_large_batch(text: Path) -> None:
    many = run_threads(Job(text=text, stages=2, micro_batches=8, micro_batch_size=1))
    one = run_unsplit(Job(text=text, micro_batches=1, micro_batch_size=8))

    assert_close(many, one, bound=1e-5)


def test_bf16_split_gives_the_unsplit_bf16_models_bits(text: Path) -> None:
    job = Job(text=text, precision=Precision.BF16)

    assert_same_bits(run_threads(job), run_unsplit(job))


def test_bf16_is_within_two_percent_of_fp32_and_not_equal_to_it(text: Path) -> None:
    fp32 = run_unsplit(Job(text=text))
    bf16 = run_threads(Job(text=text, precision=Precision.BF16))

    assert_close(bf16, fp32, bound=2e-2)
    assert bf16.losses != fp32.losses


def test_a_users_own_layers_give_the_unsplit_models_bits(text: Path) -> None:
    model = Model(entrypoint="user_models:mlp", num_layers=5, arguments={"width": "12"})
    job = Job(text=text, model=model, stages=3)

    assert_same_bits(run_threads(job), run_unsplit(job))


def test_four_processes_over_gloo_give_the_unsplit_models_bits(text: Path) -> None:
    job = Job(text=text, stages=4)

    assert_same_bits(run_gloo(job), run_unsplit(job))


def test_two_replicas_of_two_stages_are_one_pipeline_with_twice_the_micro_batches(text: Path) -> None:
    two = run_gloo(Job(text=text, stages=2, replicas=2, micro_batches=3))
    one = run_unsplit(Job(text=text, micro_batches=6))

    # The sum of two sums of three is not, to the bit, the sum of six.
    assert_close(two, one, bound=1e-5)


def test_the_split_gradients_are_not_trivially_equal(text: Path) -> None:
    job = Job(text=text, stages=2)
    here, other = run_threads(job), run_threads(replace(job, seed=8))

    assert all(float(gradient.abs().max()) > 0 for gradient in here.gradients.values())
    assert here.losses != other.losses


def assert_same_bits(split: Outcome, whole: Outcome) -> None:
    assert split.losses == whole.losses
    assert split.gradients.keys() == whole.gradients.keys()
    differing = [name for name in whole.gradients if not torch.equal(split.gradients[name], whole.gradients[name])]
    assert differing == []


def assert_close(here: Outcome, there: Outcome, *, bound: float) -> None:
    """Bound the error of each gradient relative to the largest entry of its tensor, and that of each loss."""
    assert here.losses == pytest.approx(there.losses, rel=bound)
    assert here.gradients.keys() == there.gradients.keys()
    for name, expected in there.gradients.items():
        error = float((here.gradients[name] - expected).abs().max() / expected.abs().max())
        assert error <= bound, name
