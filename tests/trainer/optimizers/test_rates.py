"""Learning rates against transformers' schedules of the same names."""

from typing import Any

import pytest
import torch
from transformers import optimization

from pipelinejob.spec.job import Training
from pipelinejob_trainer.optimizers.rates import changed_rate, learning_rate

STEPS, WARMUP = 40, 6


def theirs(schedule: Any, **arguments: Any) -> list[float]:
    """Return the rate that transformers has after each step of the scheduler, from 1 on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, **arguments)
    rates = []
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def ours(decay: dict[str, Any] | None = None) -> list[float]:
    given = {} if decay is None else {"decay": decay}
    training = Training.model_validate({"steps": STEPS, "warmupSteps": WARMUP, "learningRate": 1.0, **given})
    return [learning_rate(training, step) for step in range(1, STEPS + 1)]


def test_cosine_to_a_tenth_is_the_default() -> None:
    expected = theirs(
        optimization.get_cosine_with_min_lr_schedule_with_warmup,
        num_warmup_steps=WARMUP,
        num_training_steps=STEPS,
        min_lr_rate=0.1,
    )

    assert ours() == ours({"kind": "Cosine"}) == pytest.approx(expected, abs=1e-12)


def test_linear_to_nothing_is_transformers() -> None:
    expected = theirs(optimization.get_linear_schedule_with_warmup, num_warmup_steps=WARMUP, num_training_steps=STEPS)

    assert ours({"kind": "Linear", "finalShare": 0}) == pytest.approx(expected, abs=1e-12)


def test_a_shorter_decay_stays_at_its_end() -> None:
    short = ours({"kind": "Linear", "finalShare": 0.2, "decaySteps": 10})

    assert short[WARMUP + 5 - 1] == pytest.approx(0.6)
    assert short[WARMUP + 10 - 1 :] == pytest.approx([0.2] * (STEPS - WARMUP - 10 + 1))


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd_is_transformers_with_a_linear_decay(final: float) -> None:
    expected = theirs(
        optimization.get_wsd_schedule,
        num_warmup_steps=WARMUP,
        num_decay_steps=8,
        num_training_steps=STEPS,
        min_lr_ratio=final,
        decay_type="linear",
    )

    found = ours({"kind": "WSD", "finalShare": final, "decaySteps": 8})

    assert found[WARMUP:] == pytest.approx(expected[WARMUP:], abs=1e-12)  # theirs warms up from the final share on


def test_wsd_decays_over_the_last_tenth_if_not_told() -> None:
    assert ours({"kind": "WSD"}) == ours({"kind": "WSD", "decaySteps": 4})


def test_constant_is_transformers() -> None:
    expected = theirs(optimization.get_constant_schedule_with_warmup, num_warmup_steps=WARMUP)

    assert ours({"kind": "Constant"}) == pytest.approx(expected, abs=1e-12)


def test_a_rate_that_jumps_where_a_run_goes_on_is_said() -> None:
    short, long = (
        Training.model_validate({"steps": steps, "warmupSteps": 0, "learningRate": 1.0}) for steps in (10, 20)
    )

    said = changed_rate(long, 10, learning_rate(short, 10))

    assert said is not None
    assert said.startswith("step 10 was done at a learning rate of 0.1;")
    assert said.endswith("it would have been 0.55, and step 11 has 0.48")
    assert changed_rate(short, 10, learning_rate(short, 10)) is None
    assert changed_rate(short, 10, None) is None
