"""Checkpoints: written whole, found damaged, fenced, kept, and read by any split."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from pipelinejob.spec.job import Training
from pipelinejob_trainer.base.errors import SupersededError, UserError
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.checkpoints import CheckpointFailedError, Checkpoints
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.process_groups import process_groups
from pipelinejob_trainer.data.position import Order, TextIdentity, TextPosition
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.optimizers.choice import make_optimizer
from pipelinejob_trainer.sample import load_newest
from support.training.gangs import plan


@pytest.fixture(scope="module")
def gang() -> Iterator[Gang]:
    """A gang of one."""
    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=30)
    )
    yield Gang(process_groups(pipeline=1, data=1), num_stages=1)
    distributed.destroy_process_group()


def place(*, samples: int) -> TextPosition:
    text = TextIdentity(bytes=1000, sha256="00" * 32)
    return TextPosition(samples=samples, order=Order(text=text, sequence_length=16, seed=7))


class Run:
    """An attempt of a one-stage job over a folder."""

    def __init__(
        self, root: Path, gang: Gang, *, attempt: int = 1, keep: int = 2, first: int = 0, end: int = 4
    ) -> None:
        self.warnings: list[str] = []
        self.folder = CheckpointFolder(root)
        self.folder.prepare(who="test")
        self.checkpoints = Checkpoints(self.folder, gang, attempt=attempt, keep=keep, warn=self.warnings.append)
        self.part = build_part(plan(4).model, plan(4).data, stretches=[(first, end)], seed=attempt)
        self.optimizer = make_optimizer(Training(steps=1), self.part.named_parameters().items())

    def resume(self) -> int:
        resumed = self.checkpoints.resume(snapshot.wanted(self.part), snapshot.may_hold(self.part, self.optimizer))
        if resumed is None:
            return 0
        snapshot.restore(self.part, self.optimizer, resumed.tensors)
        return resumed.step

    def save(self, step: int) -> None:
        """Change everything a bit, and save."""
        for tensor in snapshot.take(self.part, self.optimizer, step=step).tensors.values():
            tensor.add_(step)
        self.checkpoints.save(
            snapshot.take(self.part, self.optimizer, step=step, loss=1 / step), place(samples=4 * step)
        )

    def state(self) -> dict[str, torch.Tensor]:
        tensors = snapshot.take(self.part, self.optimizer, step=0).tensors
        return {name: tensor.clone() for name, tensor in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(root: Path, gang: Gang, *steps: int, keep: int = 9) -> Run:
    run = Run(root, gang, keep=keep)
    run.resume()
    for step in steps:
        run.save(step)
    return run


def test_what_was_saved_is_what_is_resumed(tmp_path: Path, gang: Gang) -> None:
    first = saved(tmp_path, gang, 5)
    second = Run(tmp_path, gang, attempt=2)

    assert second.resume() == 5
    assert same(second.state(), first.state())
    assert second.warnings == []


def test_another_split_reads_the_same_bits(tmp_path: Path, gang: Gang) -> None:
    whole = saved(tmp_path, gang, 5).state()

    parts = {}
    for first, end in ((0, 1), (1, 3), (3, 4)):
        part = Run(tmp_path, gang, attempt=2, first=first, end=end)
        assert part.resume() == 5
        parts |= part.state()

    assert same(parts, whole)


def _tear(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])


def _flip_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-50] ^= 1
    shard.write_bytes(content)


def _empty(shard: Path) -> None:
    shard.write_bytes(b"")


def _change_manifest(shard: Path) -> None:
    manifest = shard.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace('"attempt":1', '"attempt":2'))


def _drop_sums(shard: Path) -> None:
    shard.with_name("SHA256SUMS").unlink()


@pytest.mark.parametrize("damage", [_tear, _flip_a_bit, _empty, Path.unlink, _change_manifest, _drop_sums])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, gang: Gang, damage) -> None:
    saved(tmp_path, gang, 5, 10)
    damage(tmp_path / "step-00000010" / "stage-00000.safetensors")
    second = Run(tmp_path, gang, attempt=2)

    assert second.resume() == 5
    assert len(second.warnings) == 1
    assert "step-00000010" in second.warnings[0]


def test_a_checkpoint_says_how_many_samples_of_which_order_were_consumed(tmp_path: Path, gang: Gang) -> None:
    saved(tmp_path, gang, 5)
    second = Run(tmp_path, gang, attempt=2)

    resumed = second.checkpoints.resume(snapshot.wanted(second.part), snapshot.may_hold(second.part, second.optimizer))

    assert resumed is not None
    assert resumed.place == place(samples=20)


def _rewrite(checkpoint: Path, **changes: object) -> None:
    """Change a manifest as another version would have written it, sums and all; None leaves a field out."""
    manifest, sums = checkpoint / "manifest.json", checkpoint / "SHA256SUMS"
    before = hashlib.sha256(manifest.read_bytes()).hexdigest()
    fields = {name: value for name, value in (json.loads(manifest.read_bytes()) | changes).items() if value is not None}
    manifest.write_text(json.dumps(fields))
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(manifest.read_bytes()).hexdigest()))


def test_a_checkpoint_of_a_version_that_did_not_count_samples_says_no_place(tmp_path: Path, gang: Gang) -> None:
    saved(tmp_path, gang, 5)
    _rewrite(tmp_path / "step-00000005", place=None)
    second = Run(tmp_path, gang, attempt=2)

    resumed = second.checkpoints.resume(snapshot.wanted(second.part), snapshot.may_hold(second.part, second.optimizer))

    assert resumed is not None
    assert (resumed.step, resumed.place) == (5, None)


def test_a_whole_checkpoint_of_another_version_is_refused_and_not_passed_over(tmp_path: Path, gang: Gang) -> None:
    saved(tmp_path, gang, 5, 10)
    _rewrite(tmp_path / "step-00000010", version=2)

    with pytest.raises(UserError, match=r"version: .* another version of the trainer; go on with the image") as error:
        Run(tmp_path, gang, attempt=2).resume()

    assert error.value.reason == "CheckpointOfAnotherVersion"
    assert CheckpointFolder(tmp_path).steps() == [10, 5]


def test_a_damaged_checkpoint_is_not_sampled_from(tmp_path: Path, gang: Gang) -> None:
    saved(tmp_path, gang, 5, 10)
    _flip_a_bit(tmp_path / "step-00000010" / "stage-00000.safetensors")
    model = Run(tmp_path / "other", gang).part

    assert load_newest(model, CheckpointFolder(tmp_path)) == 5


def test_a_folder_without_checkpoints_starts_from_the_beginning(tmp_path: Path, gang: Gang) -> None:
    assert Run(tmp_path, gang).resume() == 0


def test_the_sums_can_be_checked_by_hand(tmp_path: Path, gang: Gang) -> None:
    saved(tmp_path, gang, 5)
    folder = tmp_path / "step-00000005"
    lines = (folder / "SHA256SUMS").read_text().splitlines()

    assert sorted(line.split("  ")[1] for line in lines) == ["manifest.json", "stage-00000.safetensors"]
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path, gang: Gang) -> None:
    saved(tmp_path, gang, 5, 10, 15, 20, keep=2)

    assert sorted(each.name for each in tmp_path.iterdir()) == ["fence.json", "step-00000015", "step-00000020"]


def test_nothing_is_deleted_before_the_newer_one_is_complete(tmp_path: Path, gang: Gang, monkeypatch) -> None:
    run = saved(tmp_path, gang, 5, keep=1)
    monkeypatch.setattr(run.folder, "publish", _full_disk)

    with pytest.raises(CheckpointFailedError, match="No space left"):
        run.save(10)

    assert run.folder.steps() == [5]
    assert Run(tmp_path, gang, attempt=2).resume() == 5


def _full_disk(*_: object) -> Path:
    raise OSError(28, "No space left on device")


def test_a_late_write_of_an_older_attempt_changes_nothing(tmp_path: Path, gang: Gang) -> None:
    older = saved(tmp_path, gang, 5)
    newer = Run(tmp_path, gang, attempt=2)
    newer.resume()
    newer.save(10)
    before = (tmp_path / "step-00000010" / "SHA256SUMS").read_bytes()

    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        older.save(10)

    assert (tmp_path / "step-00000010" / "SHA256SUMS").read_bytes() == before
    assert newer.folder.steps() == [10, 5]


def test_a_checkpoint_that_slipped_past_the_fence_is_no_ones_history(tmp_path: Path, gang: Gang) -> None:
    older = saved(tmp_path / "older", gang, 5, 20)
    shutil.copytree(tmp_path / "older" / "step-00000005", tmp_path / "job" / "step-00000005")
    newer = Run(tmp_path / "job", gang, attempt=2)
    assert newer.resume() == 5
    shutil.copytree(older.folder.path(20), newer.folder.path(20))

    third = Run(tmp_path / "job", gang, attempt=3)

    assert third.resume() == 5
    third.save(10)
    assert third.folder.steps() == [10, 5]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, gang: Gang) -> None:
    saved(tmp_path, gang, 5)
    other = Run(tmp_path, gang, attempt=2)
    wanted = snapshot.wanted(other.part) | {"parameter/layers.9.weight": torch.Size([3])}

    with pytest.raises(UserError, match=r"layers\.9\.weight has shape \(3,\), the checkpoint has none") as error:
        other.checkpoints.resume(wanted, snapshot.may_hold(other.part))

    assert error.value.reason == "CheckpointMismatch"


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UserError, match="Not a directory; make it a writable volume") as error:
        CheckpointFolder(tmp_path / "file" / "checkpoints").prepare(who="test")

    assert error.value.reason == "CheckpointUnwritable"
