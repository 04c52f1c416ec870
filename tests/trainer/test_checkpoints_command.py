"""`checkpoints list`, `verify` and `prune` over a folder with whole and damaged checkpoints."""

import json
from pathlib import Path

import pytest
import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder, Manifest, shard_name, write_shard
from pipelinejob_trainer.checkpoint.inspection import inspect


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Four checkpoints, of which that of step 30 was changed after it was written."""
    folder = CheckpointFolder(tmp_path)
    for step in (10, 20, 30, 40):
        gathered = folder.begin(step, run="a")
        digest = write_shard(gathered / shard_name(0), {"parameter/layers.0.w": torch.full((4,), float(step))})
        manifest = Manifest(step=step, attempt=1, run="a", loss=step / 8, shards=(shard_name(0),))
        folder.publish(gathered, manifest, {shard_name(0): digest})
    shard = folder.path(30) / shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    return folder


def test_list_says_what_there_is_and_does_not_read_it_all(folder: CheckpointFolder, capsys) -> None:
    assert inspect("list", folder.root, keep=1, is_json=True)

    found = json.loads(capsys.readouterr().out)
    assert [(each["step"], each["loss"], each["shards"]) for each in found] == [
        (step, step / 8, 1) for step in (40, 30, 20, 10)
    ]
    (folder.path(20) / "manifest.json").write_text("{}")
    assert not inspect("list", folder.root, keep=1, is_json=False)
    assert "step 20: damaged" in capsys.readouterr().out


def test_verify_finds_a_byte_that_was_changed(folder: CheckpointFolder, capsys) -> None:
    assert not inspect("verify", folder.root, keep=1, is_json=False)

    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[2].split()[0] for line in lines] == ["whole", "damaged:", "whole", "whole"]


def test_prune_never_counts_a_damaged_one_among_those_that_stay(folder: CheckpointFolder) -> None:
    half_written = folder.begin(50, run="b")

    assert inspect("prune", folder.root, keep=2, is_json=False)

    assert folder.steps() == [40, 30, 20]
    assert half_written.is_dir()  # a run that goes on may be writing it


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint"):
        inspect("list", tmp_path, keep=1, is_json=False)
    with pytest.raises(UserError, match="there is no such folder"):
        inspect("list", tmp_path / "absent", keep=1, is_json=False)
