"""Measured costs on the command line: written, named, found, and refined from a run's folder."""

import json
from pathlib import Path

import pytest
import yaml

from pipelinejob.base.timeline import Timeline
from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import Profile, analytic_profile
from pipelinejob.planning.planner import make_plan, predicted_timeline
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.objects.costs import costs_config_map

EXAMPLE = Path(__file__).parents[3] / "examples" / "stdlib-gpt.yaml"


def example_spec() -> PipelineJobSpec:
    return PipelineJobSpec.model_validate(yaml.safe_load(EXAMPLE.read_text())["spec"])


def costs(factor: float = 1.0) -> Profile:
    """Return costs of the example's layers, `factor` times as long as counted."""
    spec = example_spec()
    counted = analytic_profile(spec.model, spec.data, spec.schedule, spec.training, device=spec.device)
    passes = ("forward_s", "backward_input_s", "backward_weight_s", "optimizer_s")
    layers = (
        layer.model_copy(update={name: getattr(layer, name) * factor for name in passes}) for layer in counted.layers
    )
    return counted.model_copy(update={"layers": tuple(layers), "source": CostSource.PROFILED})


def written(path: Path, profile: Profile) -> Path:
    path.write_text(profile.model_dump_json(by_alias=True, exclude_none=True))
    return path


def with_config_map(path: Path, profile: Profile, *, reference: dict[str, str]) -> Path:
    job = yaml.safe_load(EXAMPLE.read_text())
    job["spec"]["costs"] = reference
    item = costs_config_map(profile, name="measured", namespace="default")
    path.write_text(yaml.safe_dump_all([item, job]))
    return path


def planned_step_s(call, *arguments) -> float:
    result = call("plan", *arguments, "-o", "json")
    assert result.code == 0, result.err
    return json.loads(result.out)["plan"]["prediction"]["stepS"]


def test_the_config_map_that_a_manifest_names_is_found_beside_it(call, tmp_path) -> None:
    file = with_config_map(tmp_path / "job.yaml", costs(3.0), reference={"configMap": "measured"})

    by_config_map = planned_step_s(call, file)
    by_file = planned_step_s(call, EXAMPLE, "--profile", written(tmp_path / "p.json", costs(3.0)))

    assert by_config_map == pytest.approx(by_file)


def test_a_file_counts_before_the_config_map(call, tmp_path) -> None:
    file = with_config_map(tmp_path / "job.yaml", costs(3.0), reference={"configMap": "measured"})

    assert planned_step_s(call, file, "--profile", written(tmp_path / "p.json", costs(1.0))) < 0.5 * planned_step_s(
        call, file
    )


def test_a_config_map_without_the_entry_is_an_error_that_names_it(call, tmp_path) -> None:
    reference = {"configMap": "measured", "key": "of-last-week.json"}

    result = call("plan", with_config_map(tmp_path / "job.yaml", costs(), reference=reference))

    assert result.code == 2
    assert "config map measured has no entry of-last-week.json, it holds profile.json" in result.err


def test_costs_that_are_in_a_cluster_only_are_told_of_and_done_without(call, tmp_path) -> None:
    file = with_config_map(tmp_path / "job.yaml", costs(), reference={"configMap": "elsewhere"})

    result = call("plan", file)

    assert result.code == 0
    assert "spec.costs names config map elsewhere, which is not in the file" in result.err
    assert "counted operations, not a measurement" in result.out


@pytest.mark.parametrize(
    ("content", "said"), [("seconds", "is no JSON"), ('{"source": "profiled"}', "layers: Field required")]
)
def test_a_file_that_holds_no_profile_is_refused(call, tmp_path, content, said) -> None:
    file = tmp_path / "p.json"
    file.write_text(content)

    result = call("plan", EXAMPLE, "--profile", file)

    assert result.code == 2
    assert said in result.err
    assert "pipelinejob profile" in result.err


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run that was planned with the example's counted costs, and took twice as long."""
    folder = tmp_path / "run"
    (folder / "timelines").mkdir(parents=True)
    plan = make_plan(namespace="default", name="stdlib-gpt", spec=example_spec(), profile=costs())
    steps = tuple(step.model_copy(update={"started": 100.0}) for step in predicted_timeline(plan, costs(2.0)).stages)
    (folder / "plan.json").write_text(plan.to_json())
    written(folder / "costs.json", costs())
    (folder / "timelines" / "all.json").write_text(
        Timeline(source="measured", stages=steps).model_dump_json(by_alias=True)
    )
    return folder


def test_a_run_refines_what_it_was_planned_with(call, run_folder, tmp_path) -> None:
    result = call("profile", "--run", run_folder, "-o", tmp_path / "p.json")

    assert result.code == 0, result.err
    refined = Profile.model_validate_json((tmp_path / "p.json").read_text())
    assert [layer.forward_s for layer in refined.layers] == pytest.approx(
        [2 * layer.forward_s for layer in costs().layers], rel=1e-6
    )
    assert "block-0 … block-" in result.out
    assert f"written to {tmp_path / 'p.json'}" in result.out


def test_a_config_map_is_written_for_kubectl(call, run_folder) -> None:
    result = call("profile", "--run", run_folder, "--config-map", "measured")

    item = yaml.safe_load(result.out)
    assert (item["kind"], item["metadata"]) == ("ConfigMap", {"name": "measured", "namespace": "default"})
    assert len(Profile.model_validate_json(item["data"]["profile.json"]).layers) == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a manifest to measure, or a run's folder"),
        ((EXAMPLE, "--run", "runs/x"), "one of them"),
        (("--run", "runs/nowhere"), "no run of this version is there"),
    ],
)
def test_what_cannot_be_profiled_is_told(call, arguments, said) -> None:
    result = call("profile", *arguments)

    assert result.code == 2
    assert said in result.err


def test_a_run_without_timelines_cannot_refine(call, run_folder) -> None:
    (run_folder / "timelines" / "all.json").unlink()

    assert "no stage has written a timeline yet" in call("profile", "--run", run_folder).err
