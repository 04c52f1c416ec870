"""The commands that touch nothing: what they print, and how they end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelinejob_operator.cli.gantt import gantt_lines
from run_samples import predicted

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib-gpt.yaml"


def test_a_gantt_is_as_wide_as_it_may_be() -> None:
    *stages, axis = gantt_lines(predicted(), 80)

    assert {len(line.plain) for line in stages} == {79}
    assert axis.plain.endswith("ms")


def test_a_valid_manifest_is_called_so(call) -> None:
    result = call("validate", EXAMPLE)

    assert (result.code, result.out) == (0, f"{EXAMPLE}: stdlib-gpt: valid\n")


def test_every_error_of_every_file_is_named_by_its_path(call, manifest) -> None:
    bad = manifest(training__steps="many", schedule__name="zigzag")

    result = call("validate", EXAMPLE, bad)

    assert result.code == 3
    assert "spec.training.steps: " in result.out
    assert "spec.schedule.name: " in result.out
    assert "stdlib-gpt: valid" in result.out


def test_errors_as_json_are_the_same_errors(call, manifest) -> None:
    bad = manifest(parallelism__pipeline=99)

    (verdict,) = json.loads(call("validate", bad, "-o", "json").out)

    assert verdict["valid"] is False
    assert verdict["name"] == "stdlib-gpt"
    assert any(error["path"].startswith("spec.parallelism") for error in verdict["errors"])


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_bad_manifest_ends_plan_and_run_with_3_and_no_traceback(call, manifest, command: str) -> None:
    result = call(command, manifest(training__steps=-1))

    assert result.code == 3
    assert "spec.training.steps" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("content", ["", "a: [", "kind: Pod\napiVersion: v1\n", "just a text"])
def test_a_file_without_a_job_is_an_invalid_manifest(call, tmp_path: Path, content: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(content)

    assert call("plan", file).code == 3
    assert call("validate", file).code == 3


def test_a_missing_file_is_named(call, tmp_path: Path) -> None:
    result = call("plan", tmp_path / "none.yaml")

    assert result.code == 3
    assert "none.yaml: cannot be read: No such file" in result.err


def test_objects_of_other_kinds_beside_the_job_are_left_alone(call, tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n---\n" + EXAMPLE.read_text())

    assert call("validate", file).out == f"{file}: stdlib-gpt: valid\n"


def test_run_takes_one_job_at_a_time(call, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(EXAMPLE.read_text() + "\n---\n" + EXAMPLE.read_text())

    result = call("run", file, "--output", tmp_path / "out")

    assert result.code == 2
    assert "holds 2 PipelineJobs" in result.err
    assert not (tmp_path / "out").exists()


def test_a_suspended_job_is_not_run(call, manifest, tmp_path: Path) -> None:
    result = call("run", manifest(suspend=True), "--output", tmp_path / "out")

    assert result.code == 2
    assert "spec.suspend is true" in result.err


def test_an_unknown_option_is_wrong_usage(call) -> None:
    assert call("plan", EXAMPLE, "--no-such-option").code == 2


def test_a_run_writes_into_no_folder_that_holds_other_files(call, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    result = call("run", EXAMPLE, "--output", tmp_path)

    assert result.code == 5
    assert "holds files that no run wrote" in result.err


def test_help_names_every_command_and_the_exit_codes(call) -> None:
    result = call("--help")

    assert result.code == 0
    assert all(command in result.out for command in ("run", "plan", "validate", "version"))
    assert "130 interrupted" in result.out


def test_the_version_is_the_installed_one(call) -> None:
    assert json.loads(call("version", "-o", "json").out)["api"] == "pipelinejob.io/v1alpha1"


def test_the_command_does_not_load_what_only_a_cluster_or_a_trainer_needs() -> None:
    code = (
        "import sys, pipelinejob_operator.cli; "
        "print(sorted({'kopf', 'kubernetes', 'torch', 'pipelinejob_trainer'} & sys.modules.keys()))"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "[]\n"
