"""Checkpoints in several places: copied beside training, gone on from where the volume is empty, never read if torn."""

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Progress
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.copies import Copies, places_of
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from support.training.gangs import plan
from support.training.threadgangs import Trained, train

STEPS, INTERVAL = 8, 2


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a second volume, and a store without renames or folders."""
    return f"{request.param}://{tmp_path}/second"


def job(*urls: str, steps: int = STEPS, **checkpoint: Any) -> Plan:
    return plan(
        2,
        2,
        training={"steps": steps},
        checkpoint={"interval_steps": INTERVAL, "copies": urls, "keep": 2, **checkpoint},
    )


def copied(url: str) -> list[str]:
    files, root = fsspec.url_to_fs(*places_of(job(url)))
    return sorted(each.rstrip("/").rpartition("/")[2] for each in files.ls(root, detail=False))


def trained_and_copied(folder: Path, url: str) -> None:
    """Train, and copy every checkpoint but the last."""
    train(job(keep=9), folder)
    copies = Copies(places_of(job(url)), CheckpointFolder(folder / "checkpoints"), keep=9, warn=pytest.fail)
    for step in range(INTERVAL, STEPS, INTERVAL):
        copies.begin(step)
        copies.wait()


def empty(path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(path)
    folder.prepare(who="test")
    return folder


def losses(trained: Trained) -> list[float]:
    return [record.loss for record in trained.steps]


def test_a_run_copies_its_last_checkpoint_in_any_case_and_keeps_as_many_as_it_is_to(tmp_path: Path, url: str) -> None:
    train(job(url), tmp_path / "run")

    assert copied(url)[-1] == "step-00000008"
    assert len(copied(url)) <= 2


def test_a_run_whose_volume_is_lost_goes_on_from_the_newest_copy(tmp_path: Path, url: str) -> None:
    undisturbed = train(job(), tmp_path / "undisturbed")
    trained_and_copied(tmp_path / "first", url)

    second = train(job(url), tmp_path / "second")

    assert losses(second) == losses(undisturbed)[6:]


def test_a_copy_that_was_changed_or_is_half_there_is_passed_over_aloud(tmp_path: Path, url: str) -> None:
    trained_and_copied(tmp_path / "first", url)
    files, root = fsspec.url_to_fs(*places_of(job(url)))
    files.pipe_file(f"{root}/step-00000006/stage-00000.safetensors", b"else")
    files.rm_file(f"{root}/step-00000004/SHA256SUMS")
    folder = empty(tmp_path / "empty")
    said: list[str] = []

    Copies(places_of(job(url)), folder, keep=2, warn=said.append).fetch_newer(0, is_allowed=lambda *_: True)

    assert folder.steps() == [2]
    assert "stage-00000.safetensors is not as it was written" in said[0]
    assert "it is passed over" in said[1]
    folder.open(2).verify()


def test_a_copy_of_another_history_is_not_fetched(tmp_path: Path, url: str) -> None:
    trained_and_copied(tmp_path / "first", url)
    folder = empty(tmp_path / "empty")

    Copies(places_of(job(url)), folder, keep=2, warn=lambda _: None).fetch_newer(0, is_allowed=lambda step, run: False)

    assert folder.steps() == []


def test_jobs_that_copy_to_one_place_leave_each_others_copies_alone(tmp_path: Path, url: str) -> None:
    trained_and_copied(tmp_path / "first", url)
    mine = copied(url)

    train(job(url).model_copy(update={"name": "other"}), tmp_path / "other")

    assert copied(url) == mine


def test_a_copy_whose_sums_name_a_file_elsewhere_is_passed_over(tmp_path: Path, url: str) -> None:
    trained_and_copied(tmp_path / "first", url)
    files, root = fsspec.url_to_fs(*places_of(job(url)))
    for step in (2, 4, 6):
        files.pipe_file(f"{root}/step-{step:08d}/SHA256SUMS", b"0" * 64 + b"  ../../elsewhere\n")
    said: list[str] = []

    folder = empty(tmp_path / "empty")
    Copies(places_of(job(url)), folder, keep=2, warn=said.append).fetch_newer(0, is_allowed=lambda *_: True)

    assert folder.steps() == []
    assert all("names ../../elsewhere, which is no file of the copy" in each for each in said)
    assert len(said) == 3


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"spec.checkpoint.copies: nowhere://a/b/\S+: .*; give the trainer's image what"
    ):
        train(job("nowhere://a/b"), tmp_path / "run")


def test_a_copy_that_fails_later_is_told_and_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelinejob_trainer.checkpoint import copies

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copies, "_write", full)

    trained = train(job(f"file://{tmp_path}/second"), tmp_path / "run")

    assert len(trained.steps) == STEPS
    status = Progress.model_validate_json(trained.statuses[0].progress())
    assert status.failed_checkpoints >= 1
    assert "No space left on device" in (status.checkpoint_failure or "")


def test_older_ones_stay_for_as_long_as_they_are_to(tmp_path: Path) -> None:
    train(job(keep=1, keep_seconds=3600), tmp_path / "run")
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    assert folder.steps() == [8, 6, 4, 2]

    shutil.copytree(folder.root, tmp_path / "again" / "checkpoints")
    train(job(keep=1, steps=10), tmp_path / "again")

    assert CheckpointFolder(tmp_path / "again" / "checkpoints").steps() == [10]
