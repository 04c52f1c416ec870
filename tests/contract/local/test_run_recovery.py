"""A stage is killed, and another stopped, under the real command: only that one is replaced."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipelinejob.base import names
from support.local.local_cli import Run, tiny_manifest

pytestmark = pytest.mark.xdist_group("processor-heavy")
STEPS = 120
MANY = 1500  # for as long as a spare needs to come up, on a busy machine
TESTS = str(Path(__file__).parents[2])


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    runs: list[Run] = []

    def begin(
        name: str, *, environment: Mapping[str, str] | None = None, program: Path | None = None, **spec: object
    ) -> Run:
        manifest = tiny_manifest(tmp_path / f"{name}.yaml", fake=False, **({"training": {"steps": STEPS}} | spec))
        runs.append(
            Run(manifest, tmp_path / name, "--no-profile", "--prompt", "", program=program, **(environment or {}))
        )
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def losses(run: Run) -> dict[int, float]:
    records = map(json.loads, (run.output / names.STEPS_FILE).read_text().splitlines())
    return {record["step"]: record["loss"] for record in records}


def test_a_killed_and_a_stopped_stage_are_replaced_alone_and_the_losses_are_the_undisturbed_runs(start) -> None:
    undisturbed = start("undisturbed")
    assert undisturbed.wait() == 0, undisturbed.said

    run = start("disturbed", recovery={"inPlace": True, "spares": 1, "intervalSteps": 1})
    run.until(lambda: run.steps() >= 10)
    before = run.stages()
    os.kill(before["0"], signal.SIGKILL)
    run.until(lambda: "as incarnation 2" in run.said)
    reached = run.steps()
    run.until(lambda: run.steps() >= reached + 5)
    os.kill(before["1"], signal.SIGSTOP)
    run.until(lambda: "as incarnation 3" in run.said)

    assert run.wait() == 0, run.said
    assert losses(run) == losses(undisturbed)
    assert run.steps() <= STEPS + 2  # each time a step at most is done again
    assert "Restarting" not in run.said
    assert run.said.count("Only tiny-r0-s") == 2
    status = json.loads((run.output / "summary.json").read_text())
    assert (status["state"], status["restarts"]) == ("Succeeded", 0)


def test_a_stage_that_is_told_to_stop_hands_over_and_no_step_is_done_again(start) -> None:
    run = start("told", recovery={"inPlace": True, "spares": 1})
    run.until(lambda: run.steps() >= 10)
    os.kill(run.stages()["1"], signal.SIGTERM)

    assert run.wait() == 0, run.said
    assert run.steps() == STEPS
    assert "was taken away: asked to stop; step" in run.said
    assert "had handed over after step" in run.said
    assert "Restarting" not in run.said
    status = json.loads((run.output / "summary.json").read_text())
    assert (status["state"], status["restarts"]) == ("Succeeded", 0)


def test_a_stage_that_hangs_is_named_and_replaced_alone_and_all_go_on(start, tmp_path: Path) -> None:
    run = start(
        "hanging",
        model={"entrypoint": "layers.faulty_models:hanging_once", "numLayers": 4},
        parallelism={"pipeline": 2},
        recovery={"inPlace": True, "intervalSteps": 1},
        failurePolicy={"hangTimeoutSeconds": 10},
        environment={
            "PYTHONPATH": os.pathsep.join((TESTS, os.environ.get("PYTHONPATH", ""))),
            "HUNG": f"{tmp_path}/hung",
        },
    )

    assert run.wait() == 0, run.said
    assert "Only tiny-r0-s1 is replaced; 1 stage keeps its process" in run.said
    assert "no progress for 10 s after step" in run.said
    assert "Restarting" not in run.said
    log = next((run.output / "logs").glob("*r0-s1*.log")).read_text()
    assert "this process waits for nobody" in log
    assert "in comes_back_once_it_hung" in log
    assert run.steps() <= STEPS + 1


def test_a_spare_that_is_a_pod_as_on_a_cluster_takes_a_killed_stages_place_and_the_losses_are_the_same(start) -> None:
    undisturbed = start("undisturbed", training={"steps": MANY})
    assert undisturbed.wait() == 0, undisturbed.said

    run = start(
        "spare-pods",
        program=Path(TESTS) / "support" / "local" / "spare_pods.py",
        recovery={"inPlace": True, "spares": 1, "intervalSteps": 1},
        training={"steps": MANY},
    )
    run.until(lambda: "tiny-spare-0" in ready_spares(run))
    reached = run.steps()
    os.kill(run.stages()["0"], signal.SIGKILL)
    run.until(lambda: "as incarnation 2" in run.said)
    run.until(lambda: run.steps() >= reached + 5)
    assert "Only tiny-r0-s0 is replaced, by tiny-spare-0; 1 stage keeps its process" in " ".join(run.said.split())
    run.until(lambda: "tiny-spare-1" in ready_spares(run))

    assert run.wait() == 0, run.said
    assert losses(run) == losses(undisturbed)
    assert run.steps() <= MANY + 1
    log = next((run.output / "logs").glob("*spare-0*.log")).read_text()
    assert "takes the place of stage 0 of replica 0" in log
    assert "Restarting" not in run.said


def ready_spares(run: Run) -> set[str]:
    """Name the spares that are said to be ready."""
    file = run.output / "job.json"
    status = json.loads(file.read_text()).get("status", {}) if file.exists() else {}
    spares = (status.get("recovery") or {}).get("spares", [])
    return {f"tiny-spare-{each['number']}" for each in spares if each.get("ready")}
