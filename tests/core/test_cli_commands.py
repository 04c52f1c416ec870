"""The commands that touch nothing: what they print, and how they end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob.cost import analytic_profile
from pipelinejob.plan import Plan
from pipelinejob.spec import PipelineJobSpec
from pipelinejob_operator.cli import main
from pipelinejob_operator.cli.gantt import gantt_lines
from run_samples import predicted

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib-gpt.yaml"


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments: str | Path) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def manifest(tmp_path: Path):
    def write(**changes: Any) -> Path:
        content = yaml.safe_load(EXAMPLE.read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = content["spec"]
            for parent in parents:
                target = target[parent]
            target[last] = value
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def node(name: str, gpus: int, leaf: str) -> dict[str, Any]:
    resources = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": leaf}},
        "status": {"allocatable": resources, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def test_a_plan_is_printed_for_people(call) -> None:
    result = call("plan", EXAMPLE)

    assert result.code == 0
    assert "4 stages, 1F1B, 8 micro-batches of 2" in result.out
    assert "counted operations, not a measurement" in result.out
    assert "0-2" in result.out


def test_a_plan_says_which_stretches_of_layers_a_stage_holds(call, manifest) -> None:
    schedule = {"name": "DualPipeV", "microBatches": 8, "microBatchSize": 2, "batchSize": 15}

    result = call("plan", manifest(schedule=schedule))

    assert "4 stages, DualPipeV, 8 micro-batches of 2, 15 sequences in all" in result.out
    assert "0-1, 8-9" in result.out


def test_a_plan_as_json_is_the_document_that_the_stages_mount(call) -> None:
    result = call("plan", EXAMPLE, "-o", "json")

    plan = Plan.from_json(result.out)
    assert (plan.namespace, plan.name, len(plan.stages)) == ("default", "stdlib-gpt", 4)


def test_a_plan_as_yaml_reads_as_the_same(call) -> None:
    as_json, as_yaml = call("plan", EXAMPLE, "-o", "json"), call("plan", EXAMPLE, "-o", "yaml")

    assert yaml.safe_load(as_yaml.out) == json.loads(as_json.out)


def test_the_manifests_are_those_of_one_gang(call) -> None:
    result = call("plan", EXAMPLE, "--manifests")

    items = list(yaml.safe_load_all(result.out))
    assert [item["kind"] for item in items] == ["ConfigMap", "Service", *["Pod"] * 4]
    assert [item["metadata"]["name"] for item in items[2:]] == [f"stdlib-gpt-r0-s{stage}" for stage in range(4)]
    assert all(item["spec"]["schedulingGates"] for item in items[2:])


def test_given_nodes_the_stages_are_placed_and_their_pods_pinned(call, manifest, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps({"items": [node("a", 2, "zone-a"), node("b", 2, "zone-a"), node("c", 2, "zone-b")]}))
    file = manifest(device="gpu")

    plan = Plan.from_json(call("plan", file, "--nodes", nodes, "-o", "json").out)
    items = list(yaml.safe_load_all(call("plan", file, "--nodes", nodes, "--manifests").out))

    assert plan.placement
    assert [each.node for each in plan.placement.assignments] == ["a", "a", "b", "b"]
    assert "schedulingGates" not in items[2]["spec"]
    assert "node" in call("plan", file, "--nodes", nodes).out


def test_a_job_that_fits_no_node_ends_with_4_and_one_sentence(call, manifest, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps([node("a", 2, "zone-a")]))

    result = call("plan", manifest(device="gpu"), "--nodes", nodes)

    assert result.code == 4
    assert result.err.startswith("error: ")
    assert "nvidia.com/gpu" in result.err


@pytest.mark.parametrize(
    ("content", "said"), [("{}", "holds no list of nodes"), ("{", "is no JSON"), (None, "No such file")]
)
def test_a_nodes_file_that_is_none_is_wrong_usage(call, tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "nodes.json"
    if content is not None:
        file.write_text(content)

    result = call("plan", EXAMPLE, "--nodes", file)

    assert (result.code, said in result.err) == (2, True)


def test_a_measured_profile_changes_the_source_of_the_prediction(call, tmp_path: Path) -> None:
    spec = PipelineJobSpec.model_validate(yaml.safe_load(EXAMPLE.read_text())["spec"])
    counted = analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({**counted.dump(), "source": "profiled"}))

    assert "from measured costs" in call("plan", EXAMPLE, "--profile", file).out
    file.write_text('{"source": "profiled"}')
    assert call("plan", EXAMPLE, "--profile", file).code == 2


def test_the_gantt_has_a_line_for_each_stage(call) -> None:
    lines = call("plan", EXAMPLE, "--gantt").out.splitlines()

    drawn = [line for line in lines if line.startswith("stage ") and "F0" in line]
    assert len(drawn) == 4


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


def test_the_plan_of_layers_of_unknown_cost_states_ratios_and_no_seconds(call, manifest) -> None:
    result = call("plan", manifest(model={"entrypoint": "model:build", "numLayers": 12}), "--gantt")

    assert result.code == 0
    assert "predicted: bubble" in result.out
    assert "the number of layers alone" in result.out
    assert not [word for word in ("tokens/s", " ms", " µs", "MiB") if word in result.out]
