"""AdamW against torch's own, the learning rate, clipping, and when updates are made."""

import math

import pytest
import torch

from pipelinejob.spec.job import ScheduleName, ScheduleSpec, Training
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.optimizers.choice import make_optimizer
from pipelinejob_trainer.optimizers.rates import clip_factor, learning_rate
from pipelinejob_trainer.runtime.rank import build_rank
from pipelinejob_trainer.training.totals import Totals
from pipelinejob_trainer.training.updates import Updates
from support.training.gangs import plan


def test_it_is_torchs_adamw_with_decay_on_matrices_only() -> None:
    torch.manual_seed(0)
    start = {"matrix": torch.randn(5, 3), "vector": torch.randn(3)}
    ours = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = make_optimizer(Training(steps=1, weight_decay=0.1), ours.items())
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["matrix"]], "weight_decay": 0.1},
            {"params": [theirs["vector"]], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
    )

    for _ in range(5):
        for name, value in start.items():
            gradient = torch.randn_like(value)
            ours[name].grad, theirs[name].grad = gradient, gradient * 0.5
        optimizer.step(rate=0.01, gradient_factor=0.5)
        reference.step()

    for name in start:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_odd_parameters_are_updated_as_torchs_own_does_it_state_included() -> None:
    torch.manual_seed(0)
    start = {
        "complex": torch.randn(3, 4, dtype=torch.complex64),
        "complex vector": torch.randn(4, dtype=torch.complex64),
        "double": torch.randn(3, 2, dtype=torch.float64),
        "no dimension": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
        "seldom": torch.randn(3, 3),
        "never": torch.randn(3, 3),
        "matrix": torch.randn(5, 3),
    }
    ours = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = make_optimizer(Training(steps=1, weight_decay=0.1), ours.items())
    reference = torch.optim.AdamW(
        [{"params": [each], "weight_decay": 0.1 if each.dim() > 1 else 0.0} for each in theirs.values()],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
    )

    for step in range(6):
        for name, value in start.items():
            if name != "never" and (name != "seldom" or step in {1, 2, 4}):
                gradient = torch.zeros_like(value) if step == 4 else torch.randn_like(value)
                ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        norm = torch.nn.utils.get_total_norm([each.grad for each in theirs.values() if each.grad is not None])
        assert math.sqrt(float(optimizer.squared_norm())) == pytest.approx(float(norm))
        optimizer.step(rate=0.01)
        reference.step()
        optimizer.zero_gradients()
        reference.zero_grad()

    assert {name: int(count) for name, count in optimizer.counts.items()} == {
        name: {"seldom": 3, "never": 0}.get(name, 6) for name in start
    }
    for name, each in theirs.items():
        torch.testing.assert_close(ours[name], each, rtol=1e-6, atol=1e-7)
        state = reference.state[each]
        if name != "never":
            assert int(state["step"]) == int(optimizer.counts[name])
            torch.testing.assert_close(optimizer.states["first_moment"][name], state["exp_avg"], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(
                optimizer.states["second_moment"][name], state["exp_avg_sq"], rtol=1e-6, atol=1e-7
            )
    assert torch.equal(ours["never"], start["never"])


def test_a_sparse_gradient_is_refused_by_name() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = make_optimizer(Training(steps=1, weight_decay=0.0), [("layers.0.weight", weight)])
    torch.nn.functional.embedding(torch.tensor([1]), weight, sparse=True).sum().backward()

    with pytest.raises(UserError, match=r"the gradient of layers\.0\.weight is sparse; torch\.optim\.AdamW takes none"):
        optimizer.squared_norm()


def test_a_parameter_that_begins_to_need_a_gradient_is_refused_by_name() -> None:
    weight = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = make_optimizer(Training(steps=1, weight_decay=0.0), [("layers.3.gain", weight)])
    optimizer.step(rate=0.1)
    weight.requires_grad_()
    weight.sum().backward()

    with pytest.raises(UserError, match=r"layers\.3\.gain has a gradient, but needed none .* when training began"):
        optimizer.step(rate=0.1)


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
    optimizer = make_optimizer(Training(steps=1, weight_decay=0.0), parameters.items())
    for parameter in parameters.values():
        parameter.grad = torch.full((2, 2), 3.0)

    assert math.sqrt(float(optimizer.squared_norm())) == pytest.approx(math.sqrt(8 * 9))


def test_the_squared_norm_of_some_parameters_leaves_the_others_out() -> None:
    parameters = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in "ab"}
    optimizer = make_optimizer(Training(steps=1, weight_decay=0.0), parameters.items())
    for value, parameter in enumerate(parameters.values(), start=1):
        parameter.grad = torch.full((2, 2), float(value))

    assert float(optimizer.squared_norm({"b"})) == pytest.approx(4 * 4)


def updates(name: ScheduleName, **training: float) -> Updates:
    schedule = ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2)
    wanted = plan(4, schedule=schedule, training={"clip_norm": 0.5, **training})
    return Updates(build_rank(wanted, index=0, replica=0, device=torch.device("cpu")))


def set_gradients(of: Updates, value: float) -> None:
    for parameter in of.optimizer.parameters.values():
        parameter.grad = torch.full_like(parameter, value)


def test_a_synchronous_step_updates_once_by_clipped_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    made = updates(ScheduleName.ONE_F_ONE_B, learning_rate=1.0, steps=14, warmup_steps=4)
    calls = record_steps(made, monkeypatch)
    made.begin(2)
    set_gradients(made, 1.0)

    rate = made.end(total(gradient_norm=2.0))

    assert rate == 0.5
    assert calls == [(0.5, 0.25)]
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
    assert made.end(total(gradient_norm=100.0)) == 0.5
    assert calls == [(0.3125, 1.0), (0.375, 1.0), (0.4375, 1.0), (0.5, 1.0)]


def test_gradients_are_made_those_of_the_mean_over_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = updates(ScheduleName.ONE_F_ONE_B, learning_rate=1.0, steps=14, warmup_steps=4)
    calls = record_steps(made, monkeypatch)
    made.begin(2)
    set_gradients(made, 1.0)

    made.end(total(gradient_norm=2.0, targets_per_counted=3.0))

    assert calls == [(0.5, 0.75)]


def total(**changes: float) -> Totals:
    everything = {"loss": 1.0, "gradient_norm": 1.0, "targets_per_counted": 1.0, **changes}
    return Totals(is_stop_requested=False, has_new_changes=False, **everything)


def record_steps(made: Updates, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    calls = []

    def step(*, rate: float, gradient_factor: float = 1.0) -> None:
        calls.append((rate, gradient_factor))

    monkeypatch.setattr(made.optimizer, "step", step)
    return calls
