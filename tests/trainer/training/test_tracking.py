"""Trackers are told of each step by one rank, and have no say in the training."""

from pathlib import Path
from typing import Any

import pytest

from layers import trackers
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Data, Model, ScheduleSpec
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.training import tracking
from support.training.gangs import plan
from support.training.threadgangs import Trained, train


def job(text: Path, **told: Any) -> Plan:
    return plan(
        2,
        2,
        replicas=2,
        model=Model(entrypoint="layers.poisoned_models:layers", num_layers=4),
        data=Data(paths=(str(text),), sequence_length=8),
        schedule=ScheduleSpec(micro_batches=1, micro_batch_size=1),
        training={"steps": 3, "tracking": told},
    )


def run(text: Path, tmp_path: Path, **told: Any) -> Trained:
    text.write_bytes(text.read_bytes().replace(b"\xff", b"\xfe"))
    trackers.TOLD.clear()
    return train(job(text, **told), tmp_path / "run")


def test_a_users_tracker_is_told_of_the_run_and_of_each_step_once(text: Path, tmp_path: Path) -> None:
    trained = run(text, tmp_path, tracker="layers.trackers:Run")

    description, *steps, last = trackers.TOLD
    assert (description["name"], description["attempt"], description["step"]) == ("job", 1, 0)
    assert description["spec"]["training"]["steps"] == 3
    assert [step for step, _ in steps] == [1, 2, 3]
    assert [values["loss"] for _, values in steps] == [record.loss for record in trained.steps]
    assert last == "closed"


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("layers.trackers:failing", "raised ConnectionError: the server is on holiday in step 1; training goes on"),
        ("layers.trackers:never", "raised SystemExit: 3; training goes on"),
    ],
)
def test_its_errors_are_said_once_and_stop_nothing(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tracker: str, said: str
) -> None:
    trained = run(text, tmp_path, tracker=tracker)

    assert [record.step for record in trained.steps] == [1, 2, 3]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert warnings == [f"warning: spec.training.tracking.tracker {tracker} {said}"]


@pytest.mark.parametrize("tracker", ["no_such_module:begin", "layers.trackers:begin", "layers.trackers:NO_FUNCTION"])
def test_a_tracker_that_is_not_there_is_refused(text: Path, tmp_path: Path, tracker: str) -> None:
    with pytest.raises(UserError, match=rf"spec\.training\.tracking\.tracker {tracker}.*; give"):
        run(text, tmp_path, tracker=tracker)


def test_a_tracker_that_hangs_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "_CLOSING_S", 0.05)
    monkeypatch.setattr(tracking, "_WAITING_STEPS", 4)
    import threading

    gate = threading.Event()
    slow = tracking._InThread("a:b", lambda _: gate.wait)
    slow.begin({})
    for step in range(9):
        slow.add(step, {})

    slow.close()

    gate.set()
    assert "a:b is 4 steps behind; it is not told of some" in capsys.readouterr().err


def test_tensorboard_reads_what_was_written(text: Path, tmp_path: Path) -> None:
    trained = run(text, tmp_path, tensor_board={})

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {file.parent for file in (tmp_path / "run").rglob("events.out.tfevents.*")}
    assert folder == tmp_path / "run" / "tensorboard"
    read = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in read.Scalars("loss")] == pytest.approx([each.loss for each in trained.steps])
    assert [event.value for event in read.Scalars("learning_rate")] == pytest.approx(
        [record.learning_rate for record in trained.steps]
    )


def test_a_folder_that_cannot_be_written_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curves").write_text("a file")

    with pytest.raises(UserError, match=r"tensorBoard: .*curves: .*; make it writable, or change path"):
        run(text, tmp_path, tensor_board={"path": "curves"})
