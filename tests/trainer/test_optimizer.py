"""AdamW against torch's own, the learning rate, and clipping."""

import math

import pytest
import torch

from pipelinejob.spec import Training
from pipelinejob_trainer.optimizer import AdamW, clip_factor, learning_rate


def test_it_is_torchs_adamw_with_decay_on_matrices_only() -> None:
    torch.manual_seed(0)
    start = {"matrix": torch.randn(5, 3), "vector": torch.randn(3)}
    ours = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = AdamW(ours.items(), weight_decay=0.1)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["matrix"]], "weight_decay": 0.1},
            {"params": [theirs["vector"]], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
    )

    for step in range(1, 6):
        for name, value in start.items():
            gradient = torch.randn_like(value)
            ours[name].grad, theirs[name].grad = gradient, gradient * 0.5
        optimizer.step(step, rate=0.01, gradient_factor=0.5)
        reference.step()

    for name in start:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("step", "rate"), [(1, 0.25), (2, 0.5), (4, 1.0), (9, 0.55), (14, 0.1), (20, 0.1)], ids=lambda value: f"{value:g}"
)
def test_the_rate_warms_up_and_falls_to_a_tenth(step: int, rate: float) -> None:
    training = Training(steps=14, learning_rate=1.0, warmup_steps=4)

    assert learning_rate(training, step) == pytest.approx(rate)


def test_the_rate_of_an_update_within_a_step_lies_between_those_of_the_steps() -> None:
    training = Training(steps=14, learning_rate=1.0, warmup_steps=4)

    assert learning_rate(training, 1.5) == pytest.approx(0.375)
    assert 0.55 < learning_rate(training, 8.75) < learning_rate(training, 8.25) < learning_rate(training, 8)


def test_without_warm_up_the_first_step_is_near_the_peak() -> None:
    assert learning_rate(Training(steps=1000, learning_rate=1.0), 1) == pytest.approx(1.0, abs=1e-4)


def test_a_job_of_warm_up_alone_ends_at_the_peak() -> None:
    assert learning_rate(Training(steps=4, learning_rate=1.0, warmup_steps=4), 4) == 1.0


@pytest.mark.parametrize(("norm", "bound", "factor"), [(0.5, 1.0, 1.0), (4.0, 1.0, 0.25), (4.0, 0.0, 1.0)])
def test_gradients_are_clipped_to_the_bound(norm: float, bound: float, factor: float) -> None:
    assert clip_factor(norm, bound) == factor


def test_the_squared_norm_is_that_of_all_gradients() -> None:
    parameters = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in "ab"}
    optimizer = AdamW(parameters.items(), weight_decay=0.0)
    for parameter in parameters.values():
        parameter.grad = torch.full((2, 2), 3.0)

    assert math.sqrt(float(optimizer.squared_norm())) == pytest.approx(math.sqrt(8 * 9))


def test_the_squared_norm_of_some_parameters_leaves_the_others_out() -> None:
    parameters = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in "ab"}
    optimizer = AdamW(parameters.items(), weight_decay=0.0)
    for value, parameter in enumerate(parameters.values(), start=1):
        parameter.grad = torch.full((2, 2), float(value))

    assert float(optimizer.squared_norm({"b"})) == pytest.approx(4 * 4)
