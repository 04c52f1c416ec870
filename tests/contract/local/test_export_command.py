"""`pipelinejob export`, as a person calls it: of a run, of a checkpoint, by a manifest; errors in a sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelinejob.spec.job import GptModel, Model
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder, Fence, Manifest
from pipelinejob_trainer.checkpoint.shards import shard_name, write_shard
from pipelinejob_trainer.models.part import build_part
from support.training.gangs import plan

MODEL = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as `pipelinejob run` leaves it."""
    root = tmp_path_factory.mktemp("run")
    played = plan(2, 2, model=MODEL)
    (root / "plan.json").write_text(played.to_json())
    part = build_part(played.model, played.data, stretches=[(0, 4)], seed=7)
    folder = CheckpointFolder(root / "checkpoints")
    folder.prepare(who="test")
    folder.take_over(Fence(attempt=1, run="ab", step=0))
    gathered = folder.begin(6, run="ab")
    digests = {shard_name(0): write_shard(gathered / shard_name(0), snapshot.take(part, None, step=6).tensors)}
    folder.publish(gathered, Manifest(step=6, attempt=1, run="ab", shards=tuple(digests)), digests)
    return root


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelinejob", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_runs_folder_is_enough(run: Path, tmp_path: Path) -> None:
    result = export(run, "--to", tmp_path / "out")

    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 4 * 16 * 256


def test_so_are_one_checkpoint_and_a_manifest(run: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    spec = {
        "model": {"gpt": {"numLayers": 2, "hiddenSize": 16, "numHeads": 2}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 16},
        "parallelism": {"pipeline": 2},
        "schedule": {"name": "1F1B", "microBatches": 2, "microBatchSize": 2},
        "training": {"steps": 6, "seed": 7},
    }
    head = {"apiVersion": "pipelinejob.io/v1alpha1", "kind": "PipelineJob", "metadata": {"name": "job"}}
    manifest.write_text(json.dumps(head | {"spec": spec}))
    step = run / "checkpoints" / "step-00000006"

    result = export(step, "--to", tmp_path / "out", "--manifest", manifest, "--dtype", "bf16")

    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_errors_are_one_sentence_and_leave_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    told = {
        "nowhere": export(tmp_path / "none", "--to", tmp_path / "out"),
        "exists": export(run, "--to", tmp_path / "there"),
        "adapters": export(run, "--to", tmp_path / "out", "--adapters-only"),
    }

    assert "is not there, and has no plan.json in it or above it" in told["nowhere"].stderr
    assert "is there already, and nothing is overwritten" in told["exists"].stderr
    assert "the job trained the whole model, not adapters" in told["adapters"].stderr
    assert all(each.returncode == 2 and len(each.stderr.splitlines()) == 1 for each in told.values())
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
