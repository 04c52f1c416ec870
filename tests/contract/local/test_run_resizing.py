"""`pipelinejob scale` under a run that goes on: replicas come and go, and the stages that stay keep their processes."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.local.local_cli import Run, tiny_manifest

pytestmark = pytest.mark.xdist_group("processor-heavy")
STAND_IN = Path(__file__).parents[2] / "support" / "local" / "meeting_trainer.py"
SHARED = {"name": "1F1B", "globalBatchSize": 8, "microBatchSize": 2}


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    runs: list[Run] = []

    def begin(
        name: str, *, stands_in: bool = False, environment: Mapping[str, str] | None = None, **spec: object
    ) -> Run:
        trainer = {"name": "trainer", "command": ["python", str(STAND_IN)]}
        manifest = tiny_manifest(
            tmp_path / f"{name}.yaml",
            fake=False,
            parallelism={"pipeline": 2, "data": 1},
            schedule=SHARED,
            training={"steps": 1_000_000},
            recovery={"inPlace": True},
            **({"template": {"spec": {"containers": [trainer]}}} if stands_in else {}),
        )
        runs.append(Run(manifest, tmp_path / name, "--no-profile", "--prompt", "", **(environment or {})))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def scale(run: Run, replicas: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipelinejob", "scale", str(run.output), "--replicas", str(replicas)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def resized(run: Run, replicas: int) -> None:
    """Scale a run, and wait until it trains so."""
    number = "1 replica" if replicas == 1 else f"{replicas} replicas"
    before = run.said.count(f"Trains with {number} since")
    assert scale(run, replicas).returncode == 0
    run.until(lambda: run.said.count(f"Trains with {number} since") > before)


def test_replicas_come_and_go_beside_stages_that_keep_their_processes(start) -> None:
    run = start("standing-in", stands_in=True)
    run.until(lambda: "StagesReady" in run.said)
    before = set(run.pids())
    for replicas in (2, 4, 1, 2):
        resized(run, replicas)
        assert before <= set(run.pids())
    assert "Restarting" not in run.said
    assert "StageFailed" not in run.said
    assert "training stood still for 0.1 s" in run.said
    run.interrupt()
    run.wait()


def test_a_new_replica_that_dies_leaves_the_others_as_they_are(start) -> None:
    run = start("dying", stands_in=True, environment={"MEETING_DIES": "1"})
    run.until(lambda: "StagesReady" in run.said)
    before = set(run.pids())
    assert scale(run, 2).returncode == 0
    run.until(lambda: "ResizeWaits" in run.said)
    assert "which was to join, ended: DiedYoung; nothing of the job that trains was touched" in run.said
    assert before <= set(run.pids())
    run.interrupt()
    run.wait()


def test_a_run_gets_the_replicas_that_it_is_scaled_to_from_memory(start) -> None:
    run = start("scaled")
    run.until(lambda: run.steps() >= 2)
    before = run.pids()
    for replicas in (2, 1):
        resized(run, replicas)
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


def reshaped(run: Run, *options: str, what: str) -> None:
    """Ask a run for another shape, and wait until it trains so."""
    command = [sys.executable, "-m", "pipelinejob", "scale", str(run.output), *options]
    before = run.said.count(what)
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr
    run.until(lambda: run.said.count(what) > before)


def test_stages_come_and_go_beside_those_that_keep_their_processes(start) -> None:
    run = start("stages-standing-in", stands_in=True)
    run.until(lambda: "StagesReady" in run.said)
    before = set(run.pids())
    for stages in (3, 4, 2):
        reshaped(run, "--stages", str(stages), what=f"Trains with {stages} stages of")
        assert before <= set(run.pids())
    reshaped(run, "--schedule", "ZB-H1", what="layers, ZB-H1, since")
    assert before <= set(run.pids())
    assert "Restarting" not in run.said
    assert "StageFailed" not in run.said
    run.interrupt()
    run.wait()


def test_a_run_gets_the_stages_layers_and_schedule_that_it_is_asked_for_from_memory(start) -> None:
    run = start("reshaped")
    run.until(lambda: run.steps() >= 2)
    before = run.pids()
    reshaped(run, "--stages", "3", what="Trains with 3 stages of")
    reached = run.steps()
    run.until(lambda: run.steps() > reached + 2)
    reshaped(run, "--stages", "2", "--schedule", "ZB-H1", what="Trains with 2 stages of")
    reached = run.steps()
    run.until(lambda: run.steps() > reached + 2)
    assert set(before) <= set(run.pids())
    assert "Restarting" not in run.said
    assert "StageFailed" not in run.said
    print(*(line for line in run.said.splitlines() if "stood still" in line or "Resized" in line), sep="\n")
    run.interrupt()
    run.wait()
    status = json.loads((run.output / "job.json").read_text())["status"]
    assert (len(status["stages"]), status["restarts"]) == (2, 0)
    assert (run.output / "summary.json").exists(), "the report of a run whose stages changed"
    assert float(status["recovery"]["stallSeconds"]) < 5
