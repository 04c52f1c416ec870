"""A late-bound job on one machine: its processes wait for their numbers and train, through the real command."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local.local_cli import Run, tiny_manifest

pytestmark = pytest.mark.xdist_group("processor-heavy")


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    runs: list[Run] = []

    def begin(manifest: Path) -> Run:
        runs.append(Run(manifest, tmp_path / "out"))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def test_a_late_bound_job_trains_on_one_machine(start, tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path / "job.yaml", fake=False, scheduling={"binding": "Late"}, training={"steps": 3})

    run = start(manifest)

    assert run.wait() == 0, run.said
    assert run.steps() == 3
    stages = json.loads((run.output / "job.json").read_text())["status"]["stages"]
    assert {each["pod"] for each in stages} == {"tiny-p0", "tiny-p1"}


def test_a_job_with_a_queue_of_kueues_waits_for_none_on_one_machine(start, tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path / "job.yaml", training={"steps": 3})
    manifest.write_text(
        manifest.read_text().replace("  name: tiny", "  name: tiny\n  labels: {kueue.x-k8s.io/queue-name: q}")
    )

    run = start(manifest)

    assert run.wait() == 0, run.said
