"""The commands that touch nothing: what they print, and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelinejob_operator.cli.given.text_files import check_writable
from pipelinejob_operator.cli.shown.gantt import gantt_lines
from support.plans.run_samples import predicted

EXAMPLE = Path(__file__).parents[3] / "examples" / "stdlib-gpt.yaml"


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


def test_a_files_name_stands_once_in_its_error(call, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: 1\nb: [")

    missing = call("validate", tmp_path / "none.yaml")
    broken = call("validate", tmp_path / "broken.yaml")
    (verdict,) = json.loads(call("validate", tmp_path / "broken.yaml", "-o", "json").out)

    assert missing.out == f"{tmp_path}/none.yaml: cannot be read: No such file or directory\n"
    assert broken.out.startswith(f"{tmp_path}/broken.yaml:2:5: ")
    assert broken.out.count("broken.yaml") == 1
    assert verdict["errors"][0]["path"] == "2:5"


def test_a_folder_is_validated_with_all_below_it_whatever_else_it_holds(call, manifest, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "old.yaml").write_text("kind: PipelineJob")
    (tmp_path / "deep" / "good.yml").write_text(EXAMPLE.read_text())
    (tmp_path / "service.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: db}\n")
    (tmp_path / "package.json").write_text('{"name": "web"}')
    (tmp_path / "profile.yaml").write_text("apiVersion: pipelinejob.io/v1alpha1\nkind: TopologyProfile\n")
    manifest(training__steps=-1)

    result = call("validate", tmp_path)

    assert result.code == 3
    good, bad, profile, *_ = result.out.splitlines()
    assert good == f"{tmp_path}/deep/good.yml: stdlib-gpt: valid"
    assert bad.startswith(f"{tmp_path}/job.yaml: stdlib-gpt: spec.training.steps: ")
    assert profile.startswith(f"{tmp_path}/profile.yaml: ")
    assert "service" not in result.out
    assert ".git" not in result.out


def test_a_folder_without_any_job_is_said_to_hold_none(call, tmp_path: Path) -> None:
    result = call("validate", tmp_path)

    assert (result.code, result.out) == (3, f"{tmp_path}: there is no PipelineJob in its 0 files of YAML or JSON\n")


@pytest.mark.parametrize("command", ["run", "profile"])
def test_a_job_for_gpus_is_refused_on_a_machine_without_before_anything_is_measured(
    call, manifest, tmp_path: Path, monkeypatch, command: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.chdir(tmp_path)

    result = call(command, manifest(device="gpu"))

    assert result.code == 4
    assert result.err == (
        "error: spec.device: gpu, and this machine has no nvidia.com/gpu; add `device: cpu`, or plan for a"
        " cluster's with `pipelinejob plan --product`\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_what_run_cannot_do_beside_another_option_is_refused(call, manifest, tmp_path: Path) -> None:
    both = call("run", EXAMPLE, "--profile", "p.json", "--no-profile", "--output", tmp_path / "out")
    own = manifest(model={"entrypoint": "layers:build", "numLayers": 4})
    prompted = call("run", own, "--prompt", "def ", "--output", tmp_path / "out")

    assert (both.code, both.err) == (
        2,
        "error: --profile p.json: --no-profile asks for counted costs; give one of them\n",
    )
    assert (prompted.code, prompted.err) == (
        2,
        "error: --prompt 'def ': nothing says what its tokens mean\n",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", EXAMPLE, "--html"),
        ("profile", EXAMPLE, "-o"),
        ("schedule", "show", "1F1B", "-p", 2, "-m", 2, "--svg"),
        ("schedule", "show", "1F1B", "-p", 2, "-m", 2, "--html"),
        ("schedule", "compare", "-p", 2, "-m", 2, "--html"),
    ],
    ids=str,
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(call, tmp_path: Path, arguments) -> None:
    result = call(*arguments, tmp_path / "none" / "out.html")

    assert result.code == 2
    assert "out.html: No such file or directory; name a file that can be written" in result.err
    assert result.out == ""


def test_an_output_that_is_looked_at_is_left_as_it_was(tmp_path: Path) -> None:
    old = tmp_path / "old.html"
    old.write_text("old")

    check_writable(old, "--html")
    check_writable(tmp_path / "new.html", "--html")

    assert old.read_text() == "old"
    assert [*tmp_path.iterdir()] == [old]


def test_the_version_is_an_option_too_and_the_module_is_the_command(call) -> None:
    module = subprocess.run(
        [sys.executable, "-m", "pipelinejob", "--version"], capture_output=True, text=True, check=True
    )

    assert call("--version").out == call("version").out == module.stdout


def test_shells_complete_commands_and_options() -> None:
    def completed(*words: str) -> list[str]:
        asked = {
            "_PIPELINEJOB_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": f"{len(words) - 1}",
        }
        command = [sys.executable, "-m", "pipelinejob"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **asked}
        ).stdout.split()

    assert completed("pipelinejob", "pl") == ["plan"]
    assert completed("pipelinejob", "schedule", "sh") == ["show"]
    assert completed("pipelinejob", "plan", "--man") == ["--manifests"]


def test_without_a_terminal_nothing_is_left_out_and_each_row_is_a_line() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    fabric = EXAMPLE.parent / "fabrics" / "uneven-leaf-spine.yaml"

    def lines(*arguments: str | Path) -> list[str]:
        command = [sys.executable, "-m", "pipelinejob", *map(str, arguments)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return [line.strip() for line in said.splitlines()]

    planned = lines("plan", EXAMPLE.parent / "gpt-13b.yaml", "--fabric", fabric, "--alternatives", "0")
    heading = next(index for index, line in enumerate(planned) if line.startswith("stage "))
    assert planned[heading].split() == [
        "stage",
        "layers",
        "parameters",
        "forward",
        "backward",
        "bubble",
        "memory",
        "node",
    ]
    (zb_h1,) = (line for line in lines("schedule", "list") if line.startswith("ZB-H1 "))
    assert zb_h1.endswith(
        "1F1B with split backwards: a third of its bubble in the same memory; Qi et al. 2024, arXiv 2401.10241"
    )
    assert "by span" in lines("schedule", "compare", "-p", "2", "-m", "4", "--schedules", "1F1B")[1]


@pytest.mark.parametrize("command", ["version", "schedule list", "schedule show ZB-V -p 8 -m 64 -o json"])
def test_a_reader_that_goes_away_has_seen_enough(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "pipelinejob", *command.split()], stdout=gone, stderr=subprocess.PIPE, check=False
        )

    assert (done.returncode, done.stderr) == (0, b"")
