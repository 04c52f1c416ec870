import time
from collections.abc import Callable

import pytest
import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.virtual import Sleeper, Virtual, layers
from support.local.processes import HANG_S

F_S, I_S, W_S = 0.010, 0.020, 0.040
TOLERANCE_S = 0.001


def takes(expected_s: float, work: Callable[[torch.Tensor], object], prepare: Callable[[], torch.Tensor]) -> bool:
    """Repeat until it takes as long as expected, as all that else runs on this machine only adds to it."""
    deadline_s = time.monotonic() + HANG_S
    while time.monotonic() < deadline_s:
        prepared = prepare()
        start_s = time.perf_counter()
        work(prepared)
        took_s = time.perf_counter() - start_s
        assert took_s > expected_s - TOLERANCE_S, "a wait is never shorter than it should be"
        if took_s < expected_s + TOLERANCE_S:
            return True
    return False


@pytest.fixture
def layer() -> Virtual:
    return Virtual(forward_s=F_S, input_s=I_S, weight_s=W_S)


@pytest.fixture
def received() -> torch.Tensor:
    return torch.ones(1, 4, 256, requires_grad=True)


def test_a_forward_pass_takes_its_time(layer: Virtual, received: torch.Tensor) -> None:
    assert takes(F_S, layer, lambda: received)


def test_a_full_backward_pass_takes_both_gradients_time(layer: Virtual, received: torch.Tensor) -> None:
    assert takes(I_S + W_S, torch.Tensor.backward, lambda: layer(received).sum())


def test_the_input_gradient_alone_takes_its_own_time(layer: Virtual, received: torch.Tensor) -> None:
    assert takes(I_S, lambda output: torch.autograd.grad(output, received), lambda: layer(received).sum())


def test_the_weight_gradient_alone_takes_its_own_time(layer: Virtual) -> None:
    given = torch.ones(1, 4, 256)

    assert takes(W_S, lambda output: torch.autograd.grad(output, layer.scale), lambda: layer(given).sum())


def test_its_gradients_are_those_of_a_product(layer: Virtual, received: torch.Tensor) -> None:
    (layer(received) * 3).sum().backward()

    assert received.grad is not None
    assert layer.scale.grad is not None
    assert received.grad.unique().tolist() == [3.0]
    assert layer.scale.grad.unique().tolist() == [12.0]


def test_layers_may_cost_differently_and_a_device_be_slow() -> None:
    embedding, *others = layers(forward_ms="10", input_ms="10,20", weight_ms="30,40", layers="2", speed="0.5")

    assert isinstance(embedding, torch.nn.Embedding)
    assert [(each._forward_s, each._input_s, each._weight_s) for each in others] == [
        (0.02, 0.02, 0.06),
        (0.02, 0.04, 0.08),
    ]


def test_as_many_costs_as_layers_are_asked_for() -> None:
    with pytest.raises(UserError, match="input_ms gives the costs of 2 layers, layers says 3; give 1 or 3"):
        layers(forward_ms="1", input_ms="1,2", weight_ms="1", layers="3")


def test_a_sleeper_never_returns_early_and_learns_to_be_on_time() -> None:
    sleeper = Sleeper()
    late_s = []
    for _ in range(60):
        moment_s = time.perf_counter() + 0.002
        sleeper.sleep_until(moment_s)
        late_s.append(time.perf_counter() - moment_s)

    assert min(late_s) >= 0
    assert sorted(late_s)[len(late_s) // 4] < 50e-6  # the quarter that nothing else on this machine delayed
