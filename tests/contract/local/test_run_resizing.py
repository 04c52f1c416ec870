"""`pipelinejob scale` under a run that goes on: replicas come and go, and the stages that stay keep their processes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local.local_cli import Run, tiny_manifest

pytestmark = pytest.mark.xdist_group("processor-heavy")
SHARED = {"name": "1F1B", "globalBatchSize": 8, "microBatchSize": 2}


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    runs: list[Run] = []

    def begin(name: str, **spec: object) -> Run:
        manifest = tiny_manifest(
            tmp_path / f"{name}.yaml",
            fake=False,
            parallelism={"pipeline": 2, "data": 1},
            schedule=SHARED,
            training={"steps": 1_000_000},
            **spec,
        )
        runs.append(Run(manifest, tmp_path / name, "--no-profile", "--prompt", ""))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def scale(run: Run, replicas: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipelinejob", "scale", str(run.output), "--replicas", str(replicas)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_gets_the_replicas_that_it_is_scaled_to_from_memory(start) -> None:
    run = start("scaled", recovery={"inPlace": True})
    run.until(lambda: run.steps() >= 2)
    before = run.pids()
    for replicas in (2, 1):
        number = "1 replica" if replicas == 1 else f"{replicas} replicas"
        assert scale(run, replicas).returncode == 0
        run.until(lambda number=number: f"Trains with {number} since about step" in run.said)
        reached = run.steps()
        run.until(lambda reached=reached: run.steps() > reached + 2)
    assert set(before) <= set(run.pids())
    assert "Restarting" not in run.said
    assert "StageFailed" not in run.said

    refused = scale(run, 3)
    assert refused.returncode == 3
    assert "globalBatchSize" in refused.stderr
    run.interrupt()
    run.wait()
    status = json.loads((run.output / "job.json").read_text())["status"]
    assert (status["replicas"], status["restarts"]) == (1, 0)
    assert status["recovery"]["replacements"] == 0
    gone = scale(run, 2)
    assert gone.returncode == 5
    assert "no run goes on here" in gone.stderr
