"""A stage is slow under the real command: it is replaced, or its layers are divided anew, and the losses stay."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layers.slow_models import SLOW_PROCESS, SLOW_STAGE
from pipelinejob.base import names
from support.local.local_cli import Run, tiny_manifest

pytestmark = pytest.mark.xdist_group("processor-heavy")
STEPS = 300
TESTS = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    runs: list[Run] = []

    def begin(name: str, *, recovery: dict[str, object], **environment: str) -> Run:
        folder = tmp_path_factory.mktemp(name)
        manifest = tiny_manifest(
            folder / "tiny.yaml",
            fake=False,
            model={"entrypoint": "layers.slow_models:eight_layers", "numLayers": 8},
            training={"steps": STEPS},
            recovery=recovery,
        )
        paths = os.pathsep.join((TESTS, os.environ.get("PYTHONPATH", "")))
        runs.append(Run(manifest, folder / "run", "--no-profile", "--prompt", "", PYTHONPATH=paths, **environment))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


@pytest.fixture(scope="module")
def undisturbed(start) -> dict[int, float]:
    run = start("undisturbed", recovery={})
    assert run.wait() == 0, run.said
    return losses(run)


def losses(run: Run) -> dict[int, float]:
    records = map(json.loads, (run.output / names.STEPS_FILE).read_text().splitlines())
    return {record["step"]: record["loss"] for record in records}


def words(run: Run) -> str:
    """Return what it said, however it was wrapped."""
    return " ".join(run.said.split())


def test_a_slow_process_is_replaced_once_that_pays_and_no_step_is_done_again(start, undisturbed, tmp_path) -> None:
    run = start(
        "replaced",
        recovery={"inPlace": True, "spares": 1, "stragglers": "Replace"},
        **{SLOW_STAGE: "1", SLOW_PROCESS: str(tmp_path / "slow")},
    )

    assert run.wait() == 0, run.said
    assert "ReplacingStraggler: Stage 1 of replica 0" in run.said
    assert "as there is no other node: predicted to gain" in words(run)
    assert "had handed over after step" in run.said
    assert "Restarting" not in run.said
    assert run.steps() == STEPS
    assert losses(run) == undisturbed


def test_layers_are_divided_anew_by_what_was_measured_once_that_pays(start, undisturbed) -> None:
    run = start("divided", recovery={"stragglers": "Repartition"}, **{SLOW_STAGE: "1"})

    assert run.wait() == 0, run.said
    assert "Repartitioning: Stage 1 of replica 0" in run.said
    assert "with 7/1 layers instead of 4/4: predicted to gain" in words(run)
    plan = json.loads((run.output / "plan.json").read_text())
    assert plan["cuts"] == [[0, 7], [7, 8]]
    status = json.loads((run.output / "summary.json").read_text())
    assert (status["state"], status["restarts"]) == ("Succeeded", 0)
    assert run.steps() == STEPS  # the checkpoint was taken where they stopped
    assert losses(run) == pytest.approx(undisturbed, rel=1e-6)  # the gradient norm adds up in another order


def test_with_recovery_in_place_they_are_divided_anew_from_memory(start, undisturbed) -> None:
    run = start("divided-in-place", recovery={"inPlace": True, "stragglers": "Repartition"}, **{SLOW_STAGE: "1"})

    assert run.wait() == 0, run.said
    assert "all go over at the next step border with 7/1 layers instead of 4/4: predicted to gain" in words(run)
    assert "Restarting" not in run.said
    assert run.steps() == STEPS
    assert losses(run) == pytest.approx(undisturbed, rel=1e-6)  # as above
