"""`pipelinejob run` as a person lives it, with stages that only pretend to train: ends, stops, restarts."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local.local_cli import Run, first_steps, has_trained, tiny_manifest, wait_until_gone

QUICK = ("--no-profile", "--prompt", "")
LONG = {"training": {"steps": 100_000}}


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    runs: list[Run] = []

    def begin(manifest: Path, *options: str, **environment: str) -> Run:
        runs.append(Run(manifest, tmp_path / "out", *QUICK, *options, **environment))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tiny_manifest(tmp_path / "job.yaml")


def test_a_run_ends_well_and_leaves_everything_it_promised(start, manifest: Path) -> None:
    run = start(manifest)

    assert run.wait() == 0, run.said
    assert "Succeeded" in run.said
    assert "measured (predicted)" in run.said
    files = {entry.name for entry in run.output.iterdir()}
    assert files >= {
        "manifest.yaml", "plan.json", "summary.json", "report.html", "trace.json", "checkpoints", "steps.jsonl",
        "timelines", "logs",
    }  # fmt: skip
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["steps"], summary["state"], summary["restarts"]) == (20, "Succeeded", 0)
    assert summary["lossLast"] < summary["lossFirst"]
    assert summary["stages"][0]["bubbleRatio"]["measured"] == pytest.approx(0.25)
    plan = json.loads((run.output / "plan.json").read_text())
    cores = len(os.sched_getaffinity(0))
    assert plan["prediction"]["concurrency"] == cores // max(1, cores // 2)


def test_a_second_run_of_a_finished_job_says_so_and_trains_nothing(start, manifest: Path) -> None:
    start(manifest).wait()

    again = start(manifest)

    assert again.wait() == 0
    assert "finished after 20 steps" in again.said
    assert "--fresh" in again.said
    assert again.steps() == 20


def test_more_steps_go_on_where_the_finished_run_ended(start, manifest: Path) -> None:
    start(manifest).wait()

    more = start(manifest, "--steps", "30")

    assert more.wait() == 0, more.said
    assert first_steps(more.output, stage=0) == [0, 20]
    assert json.loads((more.output / "summary.json").read_text())["steps"] == 30


def test_fresh_begins_anew(start, manifest: Path) -> None:
    start(manifest).wait()

    fresh = start(manifest, "--fresh")

    assert fresh.wait() == 0, fresh.said
    assert first_steps(fresh.output, stage=0) == [0]
    assert fresh.steps() == 20


def test_ctrl_c_checkpoints_leaves_no_process_and_the_same_command_goes_on(start, tmp_path: Path) -> None:
    endless = tiny_manifest(tmp_path / "job.yaml", **LONG)
    run = start(endless)
    run.until(lambda: all(has_trained(run.output, stage) for stage in range(2)))
    pids = run.pids()
    run.interrupt()

    assert run.wait() == 130, run.said
    assert len(pids) == 2
    wait_until_gone(pids)
    assert "the same command goes on" in run.said
    assert (run.output / "report.html").exists()
    again = start(endless)
    reached = int((run.output / "checkpoints" / "stage-0").read_text())
    again.until(lambda: len(first_steps(run.output, stage=0)) == 2)
    assert first_steps(run.output, stage=0) == [0, reached]
    assert reached > 0


def test_a_second_ctrl_c_does_not_wait(start, tmp_path: Path) -> None:
    run = start(tiny_manifest(tmp_path / "job.yaml", **LONG), FAKE_DEAF="1")
    run.until(lambda: run.steps() >= 1)
    pids = run.pids()
    run.interrupt()
    run.until(lambda: "again Ctrl-C" in run.said)
    run.interrupt()

    assert run.wait(45) == 130  # less than its grace period
    wait_until_gone(pids)


def test_a_stage_that_is_killed_makes_the_gang_restart_from_its_checkpoint(start, tmp_path: Path) -> None:
    run = start(tiny_manifest(tmp_path / "job.yaml", training={"steps": 300}))
    run.until(lambda: run.steps() >= 3)
    os.kill(run.pids()[0], signal.SIGKILL)

    assert run.wait() == 0, run.said
    assert "Restarting" in run.said
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["steps"], summary["attempts"], summary["state"]) == (300, 2, "Succeeded")
    assert (run.output / "logs" / "tiny-r0-s0.2.log").exists()


def test_a_users_error_fails_the_job_at_once_with_the_stages_last_words(start, manifest: Path) -> None:
    run = start(manifest, FAKE_EXIT="1:64")

    assert run.wait() == 1
    assert "Failed: " in run.said
    assert "told to end so" in run.said
    assert "Traceback" not in run.said
    assert json.loads((run.output / "summary.json").read_text())["state"] == "Failed"


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("has_a_wrong_shape", "step 1, stage 0, micro-batch 0, forward pass: layer 2 (Linear) raised RuntimeError: "),
        ("all_frozen", "spec.model: no parameter of any stage can be trained: all 7 have requires_grad false; give"),
    ],
)
def test_what_is_wrong_in_a_users_layers_is_the_jobs_end_and_its_sentence(
    start, tmp_path: Path, function: str, sentence: str
) -> None:
    model = {"entrypoint": f"layers.faulty_models:{function}", "numLayers": 4}
    manifest = tiny_manifest(tmp_path / "job.yaml", fake=False, model=model, parallelism={"pipeline": 1})

    run = start(manifest, PYTHONPATH=str(Path(__file__).parents[2]))

    assert run.wait() == 1
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["state"], summary["attempts"], summary["restarts"]) == ("Failed", 1, 0)
    assert sentence in summary["message"]
    assert "failed with exit code 64" in summary["message"]
    assert "UnexpectedError" not in run.said


def test_a_failed_run_may_be_tried_again(start, manifest: Path) -> None:
    start(manifest, FAKE_EXIT="1:64").wait()

    again = start(manifest)

    assert again.wait() == 0, again.said
    assert "Going on" in again.said


def test_a_run_killed_without_warning_leaves_no_process_and_goes_on(start, tmp_path: Path) -> None:
    endless = tiny_manifest(tmp_path / "job.yaml", **LONG)
    run = start(endless)
    run.until(lambda: run.steps() >= 1)
    pids = run.pids()
    run.process.kill()
    run.wait()

    wait_until_gone(pids)
    again = start(tiny_manifest(tmp_path / "job.yaml", training={"steps": 20}))
    assert again.wait() == 0, again.said
    assert "there is no checkpoint yet" in again.said


@pytest.mark.parametrize(
    ("number", "options"),
    [(signal.SIGINT, ()), (signal.SIGINT, ("--fresh",)), (signal.SIGTERM, ()), (signal.SIGKILL, ("--fresh",))],
    ids=str,
)
def test_a_run_ended_while_its_layers_are_measured_can_be_gone_on_with(
    manifest: Path, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    run = Run(manifest, tmp_path / "out", "--prompt", "")
    run.until((run.output / "logs" / "profile.log").exists)
    measuring = run.pids()
    run.process.send_signal(number)

    assert run.wait() == (-number if number is signal.SIGKILL else 130), run.said
    wait_until_gone(measuring)
    assert "Traceback" not in run.said
    again = Run(manifest, tmp_path / "out", *QUICK, *options)
    assert again.wait() == 0, again.said
    assert again.steps() == 20


def test_results_that_an_interrupted_run_did_not_come_to_write_are_written_by_the_same_command(
    start, manifest: Path
) -> None:
    first = start(manifest)
    first.wait()
    for name in ("summary.json", "report.html"):
        (first.output / name).unlink()

    again = start(manifest)

    assert again.wait() == 0, again.said
    assert "finished after 20 steps" in again.said
    assert json.loads((again.output / "summary.json").read_text())["steps"] == 20
    assert (again.output / "report.html").exists()


def test_two_runs_do_not_share_a_folder(start, tmp_path: Path) -> None:
    endless = tiny_manifest(tmp_path / "job.yaml", **LONG)
    first = start(endless)
    first.until(lambda: first.steps() >= 1)

    second = Run(endless, tmp_path / "out", *QUICK)

    assert second.wait() == 5
    assert "another `pipelinejob run` works here" in second.said
    assert first.process.poll() is None


def test_a_manifest_that_the_checkpoints_cannot_follow_is_refused_with_the_field(start, tmp_path: Path) -> None:
    start(tiny_manifest(tmp_path / "job.yaml")).wait()
    wider = {"gpt": {"numLayers": 2, "hiddenSize": 32, "numHeads": 2}}

    other = start(tiny_manifest(tmp_path / "other.yaml", model=wider))

    assert other.wait() == 5
    assert "spec.model" in other.said
    assert "--fresh" in other.said
    assert other.steps() == 20
    assert start(tiny_manifest(tmp_path / "other.yaml", model=wider), "--fresh").wait() == 0


def test_a_job_that_this_machine_cannot_hold_ends_with_4_and_says_what_is_missing(start, tmp_path: Path) -> None:
    run = start(tiny_manifest(tmp_path / "job.yaml", device="gpu", gpuResource="example.com/abacus"))

    assert run.wait() == 4
    assert "example.com/abacus" in run.said
    assert "Traceback" not in run.said


def test_a_template_that_needs_a_cluster_fails_the_job_with_a_sentence(start, tmp_path: Path) -> None:
    secret = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    template = {"spec": {"containers": [{"name": "trainer", "env": [secret]}]}}

    run = start(tiny_manifest(tmp_path / "job.yaml", fake=False, template=template))

    assert run.wait() == 1
    assert "env TOKEN: only `value` and `valueFrom.fieldRef` work without a cluster" in run.said
    assert "Traceback" not in run.said
