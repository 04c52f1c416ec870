"""Measure, plan, run, refine, plan again: with the real trainer, on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import Profile
from support.local.local_cli import Run, tiny_manifest
from support.local.processes import HANG_S

pytestmark = pytest.mark.xdist_group("processor-heavy")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from pipelinejob_operator.cli import main; main()"]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [*program, *map(str, arguments)], capture_output=True, text=True, timeout=HANG_S, env=environment, check=False
    )


def read(path: Path) -> Profile:
    return Profile.model_validate_json(path.read_text())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two stages side by side need two processors")
def test_a_profile_a_run_and_what_the_run_measured(tmp_path: Path) -> None:
    job = tiny_manifest(tmp_path / "job.yaml", fake=False, training={"steps": 12})
    first, second = tmp_path / "profile.json", tmp_path / "refined.json"

    measured = command("profile", job, "-o", first)
    run = Run(job, tmp_path / "out", "--profile", str(first), "--prompt", "")
    code = run.wait()
    refined = command("profile", "--run", tmp_path / "out", "-o", second)
    planned = command("plan", job, "--profile", second)

    assert measured.returncode == 0, measured.stderr
    profile = read(first)
    assert [layer.name for layer in profile.layers] == ["embedding", "block-0", "block-1", "head"]
    assert profile.source is CostSource.PROFILED
    assert profile.concurrency == len(os.sched_getaffinity(0))
    assert profile.link_s >= 0
    assert min(profile.action_s, profile.step_overhead_s, profile.link_bytes_per_s or 0) > 0
    block = profile.layers[1]
    assert min(block.forward_s, block.backward_input_s, block.backward_weight_s, block.optimizer_s) > 0
    assert min(block.activation_bytes, block.between_bytes or 0, block.working_bytes) > 2 * 16 * 16 * 4
    assert code == 0, run.said
    assert "Measuring the layers" not in run.said
    assert "than planned; to plan with what was measured: `pipelinejob profile --run" in run.said
    assert refined.returncode == 0, refined.stderr
    assert read(second).layers != profile.layers
    assert [layer.activation_bytes for layer in read(second).layers] == [
        layer.activation_bytes for layer in profile.layers
    ]
    assert "from measured costs" in planned.stdout
