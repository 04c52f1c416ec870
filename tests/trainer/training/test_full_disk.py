"""A checkpoint that cannot be written: training goes on, and says so; without the last, a run does not end well."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Progress
from pipelinejob_trainer.checkpoint import checkpoints
from pipelinejob_trainer.checkpoint.checkpoints import CheckpointFailedError
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from support.training.gangs import plan
from support.training.threadgangs import Trained, train

STEPS, INTERVAL = 8, 2
FillDisk = Callable[..., None]


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> FillDisk:
    """Return what lets a stage's files of these steps' checkpoints find no room."""
    write = checkpoints.write_shard

    def fill(*steps: int, stage: int) -> None:
        def write_shard(path: Path, tensors: Any, **more: Any) -> str:
            step = int(path.parent.name.split("-")[1].split(".")[0])
            if step in steps and path.name.startswith(f"stage-{stage:05d}"):
                path.write_bytes(b"half")
                raise OSError(28, "No space left on device")
            return write(path, tensors, **more)

        monkeypatch.setattr(checkpoints, "write_shard", write_shard)

    return fill


def job(*, asynchronous: bool) -> Plan:
    checkpoint = {"interval_steps": INTERVAL, "keep": 9, "asynchronous": asynchronous}
    return plan(2, 2, training={"steps": STEPS}, checkpoint=checkpoint)


def progress(trained: Trained, rank: int) -> Progress:
    return Progress.model_validate_json(trained.statuses[rank].progress())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("stage", [0, 1])  # of which the first publishes
def test_a_full_disk_costs_a_checkpoint_and_no_step(
    tmp_path: Path, fill_disk: FillDisk, asynchronous: bool, stage: int
) -> None:
    undisturbed = train(job(asynchronous=asynchronous), tmp_path / "undisturbed")
    fill_disk(4, stage=stage)

    trained = train(job(asynchronous=asynchronous), tmp_path / "run")

    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    assert 4 not in folder.steps()
    assert folder.steps()[0] == STEPS
    assert len(folder.steps()) >= 2
    assert [each.name for each in folder.root.glob(".step-*")] == []
    assert [each.loss for each in trained.steps] == [each.loss for each in undisturbed.steps]
    assert {progress(trained, rank).failed_checkpoints for rank in range(2)} == {1}
    assert {progress(trained, rank).checkpoint_failure for rank in range(2)} == {None}  # the next went well
    assert b"pipelinejob_checkpoint_failures_total" in trained.statuses[0].metrics()


def test_all_are_told_who_could_not_write_and_why(
    tmp_path: Path, fill_disk: FillDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_disk(4, stage=1)

    train(job(asynchronous=False), tmp_path / "run")

    said = capsys.readouterr()
    assert "step 4: cannot write a checkpoint" in said.out + said.err
    assert "No space left on device; free space there; the checkpoint before it stays" in said.out + said.err
    assert "step 4: rank 1 could not write a checkpoint, and says why" in said.out + said.err


def test_without_its_last_checkpoint_a_run_does_not_end_well(tmp_path: Path, fill_disk: FillDisk) -> None:
    fill_disk(STEPS, stage=1)

    with pytest.raises(CheckpointFailedError, match=rf"step {STEPS}: "):
        train(job(asynchronous=True), tmp_path / "run")
