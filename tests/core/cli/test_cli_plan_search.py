"""`pipelinejob plan` where something is left open: devices without nodes, described fabrics, a model's config.json."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob.contract.plan import Plan

FABRICS = Path(__file__).parents[3] / "examples" / "fabrics"
UNEVEN = FABRICS / "uneven-leaf-spine.yaml"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
}
GPT = {"gpt": {"numLayers": 6, "hiddenSize": 1024, "numHeads": 16, "vocabularySize": 8192}}


@pytest.fixture
def gpu_job(manifest):
    """A job of four stages on four GPUs; its model is small, its micro-batches are few: a search is over at once."""

    def write(**changes: Any) -> Path:
        schedule = {"name": "1F1B", "microBatches": 8, "microBatchSize": 1}
        training = {"steps": 10, "precision": "bf16"}
        return manifest(**({"device": "gpu", "model": GPT, "schedule": schedule, "training": training} | changes))

    return write


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny-Llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder / "config.json"


def told(call, *arguments: object) -> dict[str, Any]:
    result = call("plan", *arguments, "-o", "json")
    assert result.err == ""
    return json.loads(result.out)


def test_a_described_fabric_is_planned_with_what_is_taken_of_it(call, gpu_job) -> None:
    plan = told(call, gpu_job(), "--fabric", UNEVEN, "--alternatives", "0")

    assert plan["fits"] is True
    assert "64 nodes of" in plan["where"]
    assert "320 of 512 nvidia.com/gpu free" in plan["where"]
    assert plan["network"] == "2 superpod > 15 leaf > 64 node (profile fabric)"
    assert {rank["device"] for rank in plan["stages"]} == {"H100-SXM"}
    assert [rank["path"][0] for rank in plan["stages"]].count("A") in {0, 4}  # not torn between superpods
    assert plan["placement"]["crossings"]["superpod"] == 0
    assert plan["placement"]["penalty"] >= plan["placement"]["leastPenalty"] >= 0
    assert set(plan["placement"]["roomLeft"]) == {"superpod", "leaf", "node"}


def test_unlike_devices_are_told_of(call, gpu_job, tmp_path: Path) -> None:
    fabric = tmp_path / "fabric.yaml"
    fabric.write_text(
        "groups:\n"
        "- {node: {product: NVIDIA-H100-80GB-HBM3, gpus: 2}}\n"
        "- {node: {product: NVIDIA-A100-SXM4-80GB, gpus: 2}}\n"
    )

    out = call("plan", gpu_job(), "--fabric", fabric, "--alternatives", "0").out

    assert "devices: 2 stages on " in out
    assert "H100-SXM" in out
    assert "A100-SXM-80GB" in out


def test_an_idle_fabric_has_more_room(call, gpu_job) -> None:
    busy, idle = (
        told(call, gpu_job(), "--fabric", UNEVEN, "--alternatives", "0", *more) for more in ((), ("--empty",))
    )

    assert "512 of 512" in idle["where"]
    assert idle["placement"]["roomLeft"]["superpod"] > busy["placement"]["roomLeft"]["superpod"]


def test_other_configurations_are_priced_where_they_would_stand(call, gpu_job) -> None:
    plan = told(call, gpu_job(), "--fabric", UNEVEN, "--alternatives", "2")

    others = [each for each in plan["alternatives"] if each["about"] == "configuration"]
    assert 1 <= len(others) <= 2
    for each in others:
        assert each["price"] == pytest.approx(each["stepSeconds"] / plan["prediction"]["stepSeconds"] - 1)  # same work
        assert each["crossings"] is not None
        assert each["fields"]["spec.parallelism.pipeline"] >= 1
    assert all(each["why"] for each in plan["rejected"])


def test_an_alternatives_fields_make_the_plan_that_it_promised(call, gpu_job) -> None:
    plan = told(call, gpu_job(), "--product", "H100", "--alternatives", "4")
    each = next(each for each in plan["alternatives"] if each["fields"]["spec.parallelism.tensor"] == 1)

    changed = yaml.safe_load(gpu_job().read_text())
    changed["spec"]["parallelism"], changed["spec"]["schedule"] = {}, {}
    for path, value in each["fields"].items():
        _, part, field = path.split(".")
        changed["spec"][part][field] = value
    file = gpu_job()
    file.write_text(yaml.safe_dump(changed))
    again = told(call, file, "--product", "H100", "--alternatives", "0")

    assert again["prediction"]["stepSeconds"] == pytest.approx(each["stepSeconds"])


def test_so_many_gpus_have_degrees_schedule_and_micro_batches_chosen(call, gpu_job) -> None:
    file = gpu_job()

    plan = told(call, file, "--gpus", "8", "--product", "H100")

    chosen = Plan.model_validate(plan["plan"])
    assert chosen.parallelism.pipeline * chosen.parallelism.data <= 8
    assert chosen.parallelism.tensor == 1  # what the trainer can run
    assert chosen.schedule.sequences * chosen.parallelism.data == 8  # as many as the manifest's
    assert plan["stages"][0]["deviceMemoryBytes"] == 80_000_000_000
    assert any("configurations looked at" in note for note in plan["notes"])
    assert plan["prediction"]["stepSeconds"] < told(call, file, "--product", "H100")["prediction"]["stepSeconds"]


def test_a_schedule_that_is_searched_for_says_what_it_is_worth_and_stands_in_the_plan(call, gpu_job) -> None:
    """A head that takes as long as two layers leaves no named schedule without waits."""
    file = gpu_job(
        model={"gpt": GPT["gpt"] | {"vocabularySize": 16384}},
        parallelism={"pipeline": 4, "data": 1, "gpus": 4},
        schedule={"name": "auto", "globalBatchSize": 8, "microBatchSize": 1},
    )

    plan = told(call, file, "--product", "H100")

    mounted = Plan.model_validate(plan["plan"])
    assert mounted.schedule.name == "auto"
    assert mounted.schedule_actions is not None
    assert "and a schedule searched for 1 of them" in plan["notes"][0]
    assert re.fullmatch(
        r"auto: [\d.]+ ms a step by a schedule searched for these stages, the best named one takes [\d.]+% longer"
        r" \([\d.]+ ms: 4 stages, .*, 8 micro-batches of 1\), both predicted",
        plan["notes"][1],
    )
    named = next(each for each in plan["alternatives"] if each["fields"]["spec.schedule.name"] != "auto")
    assert named["stepSeconds"] > plan["prediction"]["stepSeconds"]


def test_a_manifest_that_leaves_degrees_open_is_planned_onto_nodes(call, gpu_job) -> None:
    schedule = {"name": "1F1B", "globalBatchSize": 16}

    plan = told(call, gpu_job(parallelism={"gpus": 4}, schedule=schedule), "--fabric", UNEVEN)

    assert plan["fits"] is True
    assert plan["schedule"]["name"] == "1F1B"
    assert all(rank["node"] for rank in plan["stages"])


def test_the_manifests_of_an_open_job_are_those_of_what_was_chosen(call, gpu_job) -> None:
    file = gpu_job(parallelism={"gpus": 4}, schedule={"name": "1F1B", "globalBatchSize": 16})
    ranks = told(call, file, "--fabric", UNEVEN)["stages"]

    objects = list(yaml.safe_load_all(call("plan", file, "--fabric", UNEVEN, "--manifests").out))

    assert [each["kind"] for each in objects] == ["ConfigMap", "Service"] + ["Pod"] * len(ranks)


def test_gpus_given_count_before_those_of_an_open_manifest(call, gpu_job) -> None:
    file = gpu_job(parallelism={"gpus": 2, "data": 1}, schedule={"name": "1F1B", "globalBatchSize": 8})

    plan = told(call, file, "--gpus", "4", "--product", "H100", "--alternatives", "0")

    assert plan["parallelism"]["pipeline"] == 4
    assert plan["parallelism"]["data"] == 1  # which the manifest fixes


def test_devices_nobody_named_are_said_to_be_assumed(call, gpu_job) -> None:
    plan = told(call, gpu_job(), "--gpus", "4")

    assert "say what they are with --product" in plan["notes"][0]


def test_a_models_config_is_planned(call, config: Path) -> None:
    plan = told(call, config, "--gpus", "4", "--product", "H100", "--sequence-length", "256", "--batch-size", "16")

    assert plan["name"] == "tiny-llama"
    assert plan["plan"]["data"]["sequenceLength"] == 256
    assert plan["prediction"]["source"] == "analytic"
    parallelism, schedule = plan["parallelism"], plan["plan"]["schedule"]
    sequences = schedule.get("batchSize") or schedule["microBatches"] * schedule["microBatchSize"]
    assert parallelism["data"] * sequences == 16
    layers = sorted(layer for rank in plan["stages"][: parallelism["pipeline"]] for layer in rank["layers"])
    assert (layers[0][0], layers[-1][1]) == (0, 8)  # embedding, six blocks, head


def test_a_users_hardware_file_counts(call, gpu_job, tmp_path: Path) -> None:
    hardware = tmp_path / "hardware.toml"
    hardware.write_text(
        '[devices.Wonder]\nproducts = ["Wonder"]\nattained = 0.5\nmemory_bytes = 1e12\nmemory_bytes_per_s = 1e14\n'
        'link = "nvlink4"\nnetwork = "infiniband-ndr"\nflops = {bf16 = 1e18, fp32 = 1e18}\n'
    )

    known, wonder = (
        told(call, gpu_job(), "--product", product, "--hardware", hardware, "--alternatives", "0")
        for product in ("H100", "Wonder")
    )

    assert wonder["prediction"]["stepSeconds"] < known["prediction"]["stepSeconds"] / 10


def test_a_topology_profile_that_is_not_applied_yet_can_be_tried(call, gpu_job, tmp_path: Path) -> None:
    profile, nodes = tmp_path / "profile.yaml", tmp_path / "nodes.json"
    profile.write_text(
        yaml.safe_dump({
            "apiVersion": "pipelinejob.io/v1alpha1",
            "kind": "TopologyProfile",
            "metadata": {"name": "ours"},
            "spec": {"levels": [{"name": "row", "keys": ["example.com/row"]}]},
        })
    )  # fmt: skip
    allocatable = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "2"}
    ready = [{"type": "Ready", "status": "True"}]
    nodes.write_text(json.dumps([
        {"metadata": {"name": name, "labels": {"example.com/row": row}},
         "status": {"allocatable": allocatable, "conditions": ready}}
        for name, row in (("a", "1"), ("b", "2"), ("c", "1"))
    ]))  # fmt: skip

    plan = told(call, gpu_job(), "--nodes", nodes, "--topology-profile", profile, "--alternatives", "0")

    assert plan["network"] == "2 row > 3 node (profile ours)"
    assert {rank["node"] for rank in plan["stages"]} == {"a", "c"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--product", "H1000"], "--product H1000: no such device is known; use one of "),
        (["--fabric", UNEVEN, "--product", "H100"], "the nodes say themselves what they hold"),
        (["--fabric", "none.yaml"], "No such file"),
        (["--hardware", "none.toml"], "No such file"),
        (["--sequence-length", "8"], "goes with the config.json of a model"),
        (["--batch-size", "8"], "goes with the config.json of a model"),
    ],
)
def test_what_cannot_be_asked_is_wrong_usage(call, gpu_job, arguments: list[Any], said: str) -> None:
    result = call("plan", gpu_job(), *arguments)

    assert (result.code, result.out) == (2, "")
    assert said in result.err


def test_a_config_without_a_number_of_gpus_says_which_option_is_missing(call, config: Path) -> None:
    result = call("plan", config)

    assert result.code == 2
    assert result.err.endswith("for how many GPUs? Give --gpus, as in --gpus 64\n")


def test_a_config_that_is_none_is_said_by_its_field(call, config: Path) -> None:
    config.write_text(json.dumps({**LLAMA, "num_attention_heads": "many"}))

    result = call("plan", config, "--gpus", "4")

    assert result.code in {2, 3}
    assert "num_attention_heads" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("groups: [{rack: 2}]\n", "groups[0].rack: is not among levels"),
        ("levels: [rack]\n", "groups: "),
        ("- a\n", "is no mapping"),
    ],
)
def test_a_bad_description_is_said_by_its_field(call, gpu_job, tmp_path: Path, content: str, said: str) -> None:
    fabric = tmp_path / "fabric.yaml"
    fabric.write_text(content)

    result = call("plan", gpu_job(), "--fabric", fabric)

    assert result.code in {2, 3}
    assert said in result.err


def test_an_open_job_on_a_full_fabric_is_told_what_the_idle_one_would_hold(call, gpu_job, tmp_path: Path) -> None:
    fabric = tmp_path / "fabric.yaml"
    fabric.write_text("node: {product: NVIDIA-H100-80GB-HBM3}\ngroups: [{nodes: 2}]\nbusy: [{nodes: 2}]\n")
    file = gpu_job(parallelism={"gpus": 4}, schedule={"name": "1F1B", "globalBatchSize": 8})

    result = call("plan", file, "--fabric", fabric, "-o", "json")

    assert result.code == 4
    assert "an idle cluster would hold" in json.loads(result.out)["shortfall"]
    assert result.err.startswith("error: default/stdlib-gpt does not fit: ")
