"""AdamW against torch's own, the learning rate, clipping, and when updates are made."""

import math

import pytest
import torch

from gangs import plan
from pipelinejob.spec import ScheduleName, ScheduleSpec, Training
from pipelinejob_trainer.optimizer import AdamW, clip_factor, learning_rate
from pipelinejob_trainer.rank import put_together
from pipelinejob_trainer.updates import Updates


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


def updates(name: ScheduleName, **training: float) -> Updates:
    schedule = ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2)
    wanted = plan(4, schedule=schedule, training={"clip_norm": 0.5, **training})
    return Updates(put_together(wanted, index=0, replica=0, device=torch.device("cpu")))


def set_gradients(of: Updates, value: float) -> None:
    for parameter in of.optimizer.parameters.values():
        parameter.grad = torch.full_like(parameter, value)


def test_a_synchronous_step_updates_once_by_clipped_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    made = updates(ScheduleName.ONE_F_ONE_B, learning_rate=1.0, steps=14, warmup_steps=4)
    calls = record_steps(made, monkeypatch)
    made.begin(2)
    set_gradients(made, 1.0)

    rate = made.end(gradient_norm=2.0)

    assert rate == 0.5
    assert calls == [(2, 0.5, 0.25)]
    assert all(parameter.grad is None for parameter in made.optimizer.parameters.values())


def test_an_asynchronous_step_updates_with_each_version_at_the_rate_of_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = updates(ScheduleName.PIPEDREAM, clip_norm=0.0, learning_rate=1.0, steps=14, warmup_steps=4)
    calls = record_steps(made, monkeypatch)
    made.begin(2)
    for number in range(1, 5):
        set_gradients(made, float(number))
        made.within_step(number)
    count = sum(parameter.numel() for parameter in made.optimizer.parameters.values())

    assert float(made.squared_norm()) == pytest.approx(4.0**2 * count)
    assert made.end(gradient_norm=100.0) == 0.5
    assert calls == [(5, 0.3125, 1.0), (6, 0.375, 1.0), (7, 0.4375, 1.0), (8, 0.5, 1.0)]


def record_steps(made: Updates, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, float]]:
    calls = []

    def step(number: int, *, rate: float, gradient_factor: float = 1.0) -> None:
        calls.append((number, rate, gradient_factor))

    monkeypatch.setattr(made.optimizer, "step", step)
    return calls
