"""A step that is not finite: training stops, skips it, or goes back to the last checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from layers.poisoned_models import Poisoned
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Progress, Skipped
from pipelinejob.spec.job import Data, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.training import loop
from support.training.gangs import plan
from support.training.threadgangs import Trained, train, train_plainly

SAMPLES = 8  # of a step: two replicas of two micro-batches of two


@pytest.fixture
def plain_text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(bytes((i * i * 31 + i // 7) % 250 for i in range(20_000)))
    return path


def job(text: Path, *, function: str = "layers", **training: Any) -> Plan:
    return plan(
        2,
        2,
        replicas=2,
        model=Model(entrypoint=f"layers.poisoned_models:{function}", num_layers=4),
        data=Data(paths=(str(text),), sequence_length=8),
        schedule=ScheduleSpec(name=ScheduleName.ZB_H1, micro_batches=2, micro_batch_size=2),
        training={
            "steps": 6,
            "learning_rate": 0.5,
            "optimizer": "SGD",
            "sgd": {"momentum": 0.9},
            "weight_decay": 0.0,
            **training,
        },
        checkpoint={"interval_steps": 2},
    )


def poisoned(wanted: Plan, folder: Path, *samples: int) -> Trained:
    def change(prepared: loop.Preparation) -> None:
        if prepared.batches is not None:
            prepared.batches = Poisoned(batches=prepared.batches, samples=frozenset(samples))  # type: ignore[assignment]

    return train(wanted, folder / "run", change=change)


def sgd(of: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(of.values(), lr=1.0, momentum=0.9)]


def in_step(step: int) -> int:
    """Return a sample of a step, of its second replica."""
    return (step - 1) * SAMPLES + 5


def assert_weights(trained: Trained, expected: dict[str, torch.Tensor]) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(trained.weight(name), weight, rtol=1e-4, atol=1e-5)


def progress(trained: Trained, rank: int) -> Progress:
    return Progress.model_validate_json(trained.statuses[rank].progress())


def test_a_skipped_step_leaves_weights_and_momentum_as_they_were(plain_text: Path, tmp_path: Path) -> None:
    wanted = job(plain_text, on_not_finite="Skip")
    losses, weights = train_plainly(wanted, sgd, steps=[(n, n) for n in (1, 2, 4, 6)])

    trained = poisoned(wanted, tmp_path, in_step(3), in_step(5))

    assert [record.skipped for record in trained.steps] == [
        None, None, Skipped.NOT_FINITE, None, Skipped.NOT_FINITE, None,
    ]  # fmt: skip
    assert [trained.steps[at].loss for at in (0, 1, 3, 5)] == pytest.approx(losses, rel=1e-5)
    assert trained.steps[2].loss == trained.steps[1].loss
    assert_weights(trained, weights)
    assert {progress(trained, rank).skipped_steps for rank in range(4)} == {2}
    assert b'reason="NotFinite",replica="0",stage="0"} 2.0' in trained.statuses[0].metrics()


def test_too_many_in_a_row_stop_it(plain_text: Path, tmp_path: Path) -> None:
    wanted = job(plain_text, on_not_finite="Skip", not_finite_limit=2)

    with pytest.raises(
        UserError, match=r"step 4: loss nan, .* diverged: 2 steps before it were skipped already; lower"
    ):
        poisoned(wanted, tmp_path, in_step(2), in_step(3), in_step(4))


def test_a_buffer_that_the_step_has_spoilt_cannot_be_skipped(plain_text: Path, tmp_path: Path) -> None:
    wanted = job(plain_text, function="remembering", on_not_finite="Skip")

    with pytest.raises(
        UserError, match=r"passes have left layers\.1\.mean infinite or no number already; use RollBack"
    ):
        poisoned(wanted, tmp_path, in_step(3))


def test_a_roll_back_goes_on_from_the_checkpoint_with_the_text_after(plain_text: Path, tmp_path: Path) -> None:
    wanted = job(plain_text, on_not_finite="RollBack")
    _, weights = train_plainly(wanted, sgd, steps=[(1, 1), (2, 2), (3, 5), (4, 6), (5, 7), (6, 8)])

    trained = poisoned(wanted, tmp_path, in_step(4))

    assert [record.step for record in trained.steps] == [1, 2, 3, 3, 4, 5, 6]
    assert_weights(trained, weights)
    assert {progress(trained, rank).roll_backs for rank in range(4)} == {1}


def test_a_roll_back_restores_buffers_too(plain_text: Path, tmp_path: Path) -> None:
    trained = poisoned(job(plain_text, function="remembering", on_not_finite="RollBack"), tmp_path, in_step(4))

    assert all(bool(torch.isfinite(tensor.double()).all()) for tensor in trained.checkpoint.values())


def test_returns_to_one_checkpoint_come_to_an_end(plain_text: Path, tmp_path: Path) -> None:
    wanted = job(plain_text, on_not_finite="RollBack", not_finite_limit=2)

    with pytest.raises(UserError, match=r"step 3: .* it was returned 2 times to one checkpoint already"):
        poisoned(wanted, tmp_path, in_step(4), in_step(5), in_step(6))


def test_without_a_checkpoint_there_is_nothing_to_return_to(plain_text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint yet to return to; save one sooner"):
        poisoned(job(plain_text, on_not_finite="RollBack"), tmp_path, in_step(2))


def test_it_stops_if_not_told_otherwise(plain_text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 3: loss nan, .* checkpoints up to step 2 are sound"):
        poisoned(job(plain_text), tmp_path, in_step(3))
