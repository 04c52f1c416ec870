"""A folder of checkpoints, listed, verified and pruned by the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint import listing
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder, Manifest
from pipelinejob_trainer.checkpoint.shards import shard_name, write_shard

COMMAND = [sys.executable, "-c", "from pipelinejob_operator.cli import main; main()"]


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Four checkpoints of two stages each."""
    folder = CheckpointFolder(tmp_path)
    for step in (10, 20, 30, 40):
        gathered = folder.begin(step, run="ab")
        digests = {
            shard_name(stage): write_shard(gathered / shard_name(stage), {f"p{stage}": torch.full((4,), float(step))})
            for stage in range(2)
        }
        folder.publish(gathered, Manifest(step=step, attempt=1, run="ab", loss=2.5, shards=tuple(digests)), digests)
    return folder


def damage(folder: CheckpointFolder, step: int) -> None:
    file = folder.path(step) / shard_name(1)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_all_are_listed_and_a_changed_bit_is_found_by_verifying(folder: CheckpointFolder) -> None:
    damage(folder, 30)
    assert [each.damage for each in listing.found(folder)] == [None] * 4
    verified = list(listing.verified(folder))
    assert [each.step for each in verified] == [40, 30, 20, 10]
    assert [each.step for each in verified if each.damage] == [30]
    assert "SHA-256 differs" in (verified[1].damage or "")
    assert (verified[0].attempt, verified[0].loss, verified[0].stages) == (1, 2.5, 2)


def test_pruning_keeps_the_newest_whole_ones(folder: CheckpointFolder) -> None:
    (folder.path(40) / shard_name(0)).unlink()
    listing.prune(folder, keep=2, is_dry=True)
    assert folder.steps() == [40, 30, 20, 10]
    listing.prune(folder, keep=2, is_dry=False)
    assert folder.steps() == [40, 30, 20], "the damaged one is left to be looked at, and counts for none"
    assert not list(folder.root.glob(".*"))


def test_pruning_by_age_keeps_younger_ones(folder: CheckpointFolder) -> None:
    before = folder.steps()
    listing.prune(folder, keep=1, is_dry=False, older_s=3600)
    assert folder.steps() == before

    os.utime(folder.path(before[-1]) / "SHA256SUMS", (0, 0))
    listing.prune(folder, keep=1, is_dry=False, older_s=3600)
    assert folder.steps() == before[:-1]


def test_nothing_is_deleted_where_nothing_is_whole(folder: CheckpointFolder) -> None:
    for step in folder.steps():
        (folder.path(step) / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="none of its checkpoints is whole"):
        listing.prune(folder, keep=1, is_dry=False)
    assert len(folder.steps()) == 4


def test_the_command_lists_and_says_what_is_damaged(folder: CheckpointFolder) -> None:
    (folder.path(20) / shard_name(0)).unlink()
    done = subprocess.run(
        [*COMMAND, "checkpoints", "list", str(folder.root), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert [each["step"] for each in told] == [40, 30, 20, 10]
    assert "is missing" in told[2]["damage"]


def test_a_folder_without_any_is_refused_by_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "checkpoints", "verify", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "holds no checkpoint" in done.stderr


def test_what_somebody_else_deleted_meanwhile_is_nobodys_error(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "steps", lambda: [40, 30, 20, 10])
    folder.delete(20)
    assert [each.step for each in listing.verified(folder)] == [40, 30, 10]
    folder.delete(20)
    folder.prune(newest=40, keep=2, run="ab")  # as the job that trains does
    assert [step for step in (40, 30, 20, 10) if folder.path(step).exists()] == [40, 30]
