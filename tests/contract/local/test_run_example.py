"""The real trainer through the real command: from manifest to report; stopped, killed, gone on."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local.local_cli import Run, tiny_manifest, wait_until_gone

pytestmark = pytest.mark.xdist_group("processor-heavy")
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    runs: list[Run] = []

    def begin(manifest: Path, *options: str, **environment: str) -> Run:
        runs.append(Run(manifest, tmp_path / "out", *options, **environment))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def losses(output: Path) -> dict[int, float]:
    """Return the loss of each step; of a repeated one the last."""
    lines = (output / "steps.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def test_a_manifest_becomes_a_trained_model_a_report_and_a_sample(start, tmp_path: Path) -> None:
    run = start(
        tiny_manifest(
            tmp_path / "job.yaml",
            fake=False,
            training={"steps": 40, "learningRate": 0.01},
            model={"gpt": {"numLayers": 2, "hiddenSize": 32, "numHeads": 2}},
        )
    )

    assert run.wait() == 0, run.said
    summary = json.loads((run.output / "summary.json").read_text())
    assert summary["state"] == "Succeeded"
    assert summary["lossFirst"] == pytest.approx(5.55, abs=0.2)
    assert summary["lossLast"] < summary["lossFirst"] - 1
    assert summary["costSource"] == "profiled", run.said
    assert all(stage["bubbleRatio"]["measured"] > 0 for stage in summary["stages"])
    assert "A sample of the trained model:\ndef " in run.said
    report = (run.output / "report.html").read_text()
    assert "Measured, step" in report
    assert "Predicted, before the run" in report
    events = json.loads((run.output / "trace.json").read_text())["traceEvents"]
    sources = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert sources == {"predicted, replica 0", "measured, replica 0"}


def test_layers_of_ones_own_are_trained_in_replicas(start) -> None:
    run = start(EXAMPLES / "own-layers.yaml", "--steps", "12", "--prompt", "", PYTHONPATH=str(EXAMPLES))

    assert run.wait() == 0, run.said
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["steps"], len(summary["stages"])) == (12, 4)
    assert summary["lossLast"] < summary["lossFirst"]


def test_a_run_that_was_stopped_and_resumed_has_the_losses_of_one_that_never_was(start, tmp_path: Path) -> None:
    quick = ("--no-profile", "--prompt", "")
    manifest = tiny_manifest(tmp_path / "job.yaml", fake=False, training={"steps": 250})
    run = start(manifest, *quick)
    run.until(lambda: run.steps() >= 5)
    pids = run.pids()
    run.interrupt()
    assert run.wait() == 130, run.said
    wait_until_gone(pids)
    stopped_after = max(losses(run.output))

    again = start(manifest, *quick)
    again.until(lambda: max(losses(run.output)) > stopped_after)
    os.kill(again.pids()[-1], signal.SIGKILL)
    assert again.wait() == 0, again.said
    assert "Restarting" in again.said
    interrupted = losses(run.output)

    whole = Run(manifest, tmp_path / "whole", *quick)
    assert whole.wait() == 0, whole.said
    assert 5 <= stopped_after < 250
    assert sorted(interrupted) == list(range(1, 251))
    assert interrupted == losses(whole.output)
