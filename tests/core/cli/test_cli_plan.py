"""`pipelinejob plan`: what it says to people and to programs, where it places, and what it says if it does not fit."""

import io
import json
from pathlib import Path

import pytest
import yaml

from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import analytic_profile
from pipelinejob.spec.job import PipelineJobSpec

EXAMPLE = Path(__file__).parents[3] / "examples" / "stdlib-gpt.yaml"


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


def test_a_plan_as_json_holds_the_document_that_the_stages_mount(call) -> None:
    result = call("plan", EXAMPLE, "-o", "json")

    told = json.loads(result.out)
    plan = Plan.model_validate(told["plan"])
    assert (plan.namespace, plan.name, len(plan.stages)) == ("default", "stdlib-gpt", 4)
    assert told["prediction"]["stepSeconds"] == plan.prediction.step_s
    assert (told["fits"], told["shortfall"], told["placement"]) == (None, None, None)


def test_a_manifest_may_come_from_standard_input(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(EXAMPLE.read_text()))

    assert call("plan", "-").out == call("plan", EXAMPLE).out


def test_the_parts_of_a_stages_memory_add_up_to_it(call) -> None:
    told = json.loads(call("plan", EXAMPLE, "-o", "json").out)

    assert [sum(rank["memory"].values()) for rank in told["stages"]] == [rank["memoryBytes"] for rank in told["stages"]]
    assert all(part > 0 for rank in told["stages"] for part in rank["memory"].values())


def test_a_plan_says_what_replicas_share_and_what_of_it_a_rank_holds(call, manifest) -> None:
    degrees = {"pipeline": 4, "data": 2}
    whole = json.loads(call("plan", manifest(parallelism=degrees), "-o", "json").out)["stages"][1]["memory"]

    result = call("plan", manifest(parallelism=degrees | {"sharding": "full"}))
    shared = json.loads(call("plan", manifest(parallelism=degrees | {"sharding": "full"}), "-o", "json").out)

    assert "4 stages x 2 replicas, which share parameters and the optimizer's state, 1F1B" in result.out
    held = shared["stages"][1]["memory"]
    assert held["parametersBytes"] == whole["parametersBytes"] / 2
    assert held["optimizerBytes"] == whole["optimizerBytes"] / 2
    assert held["gradientsBytes"] == whole["gradientsBytes"]
    assert held["activationsBytes"] > whole["activationsBytes"]  # two layers at a time are among them


def test_a_plan_as_yaml_reads_as_the_same(call) -> None:
    as_json, as_yaml = call("plan", EXAMPLE, "-o", "json"), call("plan", EXAMPLE, "-o", "yaml")

    assert yaml.safe_load(as_yaml.out) == json.loads(as_json.out)


def test_the_manifests_are_those_of_one_gang(call) -> None:
    result = call("plan", EXAMPLE, "--manifests")

    items = list(yaml.safe_load_all(result.out))
    assert [item["kind"] for item in items] == ["ConfigMap", "Service", *["Pod"] * 4]
    assert [item["metadata"]["name"] for item in items[2:]] == [f"stdlib-gpt-r0-s{stage}" for stage in range(4)]
    assert all(item["spec"]["schedulingGates"] for item in items[2:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "n.json", "--kubeconfig", "k"], "both say where the nodes are; give one of them"),
        (["--pods", "p.json"], "goes with --nodes"),
        (["--context", "dev"], "name it too, as in --kubeconfig"),
        (["--empty"], "of which nodes? Name them with"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(call, arguments: list[str], said: str) -> None:
    result = call("plan", EXAMPLE, *arguments)

    assert result.code == 2
    assert said.casefold() in result.err.casefold()


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


def test_the_plan_of_layers_of_unknown_cost_states_ratios_and_no_seconds(call, manifest) -> None:
    result = call("plan", manifest(model={"entrypoint": "model:build", "numLayers": 12}), "--gantt")

    assert result.code == 0
    assert "predicted: bubble" in result.out
    assert "the number of layers alone" in result.out
    assert not [word for word in ("tokens/s", " ms", " µs", "MiB") if word in result.out]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--manifests", "--gantt"), "--gantt: --manifests prints objects, not a timeline; give one of the two"),
        (("--gantt", "-o", "json"), "--gantt: draws for people, and -o json is for programs; give one of them"),
        (("--image", "mine:1"), "--image mine:1: stands in what --manifests prints; give that too"),
        (
            ("--manifests", "--alternatives", "3"),
            "--alternatives 3: --manifests prints the objects of the plan alone; leave one of them out, or add --html",
        ),
        (("--product", "H100"), "--product H100: stdlib-gpt computes on processors; leave it out"),
        (("--alternatives", "3"), "--alternatives 3: there are none: stages on processors share them; leave it out"),
    ],
    ids=" ".join,
)
def test_an_option_that_would_do_nothing_is_refused(call, manifest, options, said: str) -> None:
    result = call("plan", manifest(), *options)

    assert (result.code, result.out, result.err) == (2, "", f"error: {said}\n")


def test_alternatives_need_devices_to_be_priced_on(call, manifest) -> None:
    result = call("plan", manifest(device="gpu"), "--alternatives", "3")

    assert result.err == (
        "error: --alternatives 3: on which devices? Name them with --product, --nodes, --fabric or --kubeconfig\n"
    )


def test_manifests_in_json_are_a_list_that_kubectl_takes(call, manifest) -> None:
    listed = json.loads(call("plan", manifest(), "--manifests", "-o", "json").out)

    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    assert listed["items"] == list(yaml.safe_load_all(call("plan", manifest(), "--manifests").out))


def test_of_a_job_that_serves_answers_are_foretold_and_no_step(call, tmp_path: Path) -> None:
    file, page = tmp_path / "serve.yaml", tmp_path / "plan.html"
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 1000,
        "n_positions": 512,
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 4,
    }
    spec = {
        "mode": "Serve",
        "model": {"huggingFace": {"path": "/models/m"}, "numLayers": 6, "config": config},
        "parallelism": {"pipeline": 3},
        "device": "cpu",
    }
    made = {
        "apiVersion": "pipelinejob.io/v1alpha1",
        "kind": "PipelineJob",
        "metadata": {"name": "m"},
        "spec": spec,
    }
    file.write_text(yaml.safe_dump(made))

    told = call("plan", file, "--html", page)
    drawn = call("plan", file, "--gantt")
    spec["model"].pop("config")
    file.write_text(yaml.safe_dump(made))
    unknown = call("plan", file)

    assert told.code == 0
    for text in (told.out, page.read_text()):
        assert "first token" in text
        assert "keys and values" in text
        assert "bubble" not in text
    assert drawn.code == 0
    assert "passes of a short request for each group, all at once (predicted)" in drawn.out
    stages = [line for line in drawn.out.splitlines() if line.startswith("stage ") and "f0" in line]
    assert len(stages) == len(set(stages)) == 3
    assert all("F" in line for line in stages)
    assert "stages busy" in unknown.out
    assert " ms " not in unknown.out
