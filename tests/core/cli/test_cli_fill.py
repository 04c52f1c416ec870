"""`validate --fill` and `plan --write`: a manifest takes over what its model's folder says, and stays its author's."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob_operator.cli.given.model_folder import ModelFolderError, with_its_model

SMOLLM = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 100000.0},
    "torch_dtype": "bfloat16",
}
SIZES = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
JOB = """# ours
apiVersion: pipelinejob.io/v1alpha1
kind: PipelineJob
metadata: {name: tuned}
spec:
  model:   # a real one
%s
  data: {corpus: python-stdlib, sequenceLength: 128}  # quick
  parallelism: {pipeline: 2}
  schedule: {name: 1F1B, microBatches: 4}
  training: {steps: 3}
  device: cpu
"""


def folder(at: Path, config: Any = SMOLLM) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    (at / "config.json").write_text(json.dumps(config))
    return at


def job(tmp_path: Path, model: str) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(JOB % model.replace("FOLDER", str(tmp_path / "model")))
    return file


def test_lines_are_inserted_behind_the_folder_and_nothing_else_changes(call, tmp_path: Path) -> None:
    folder(tmp_path / "model")
    file = job(tmp_path, "    # from the hub\n    huggingFace: {path: FOLDER}  # on the volume\n    # end")
    before = file.read_text()

    result = call("validate", "--fill", file)

    assert (result.code, result.out) == (0, f"{file}: tuned: valid\n")
    assert f"tuned: numLayers 32 and config of 8 fields, from {tmp_path / 'model'}" in result.err
    inserted = """    numLayers: 32
    config:
      model_type: llama
      hidden_size: 576
      intermediate_size: 1536
      num_hidden_layers: 30
      num_attention_heads: 9
      num_key_value_heads: 3
      vocab_size: 49152
      tie_word_embeddings: true
"""
    assert file.read_text() == before.replace("on the volume\n", "on the volume\n" + inserted)


FORMS = {
    "a folder in lines": "    huggingFace:\n      # here\n      path: FOLDER\n      weights: Load",
    "a model on one line": "    {huggingFace: {path: FOLDER}, numLayers: 7}",
    "a model on one line with a comma": "    {huggingFace: {path: FOLDER, },}",
    "old values in lines": "    numLayers: 7\n    config:\n      a: 3\n      b: 1\n    huggingFace: {path: FOLDER}",
    "old values on one line": "    huggingFace: {path: FOLDER}\n    config: {a: 3} # old\n    numLayers: 7 # old",
    "quoted": '    "huggingFace":\n      "path": "FOLDER"',
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_form_of_a_manifest_says_afterwards_what_its_folder_does(
    call, tmp_path: Path, form: str, newline: str
) -> None:
    folder(tmp_path / "model")
    file = job(tmp_path, FORMS[form])
    before = file.read_text()
    file.write_bytes(before.replace("\n", newline).encode())

    result = call("validate", "--fill", file)

    assert result.code == 0, result.err
    text = file.read_bytes().decode()
    model = yaml.safe_load(text)["spec"]["model"]
    assert (model["numLayers"], model["config"]) == (32, SIZES)
    comments = {line[line.index("#") :] for line in before.splitlines() if "#" in line}
    assert all(comment in text for comment in comments)
    assert text.count(newline) == text.count("\n")
    assert call("validate", "--fill", file).err.startswith(f"{file}: says already")


def test_json_stays_json(call, tmp_path: Path) -> None:
    model = {"huggingFace": {"path": str(folder(tmp_path / "model"))}}
    file = tmp_path / "job.json"
    file.write_text(json.dumps(yaml.safe_load(JOB % "    {}") | {"spec": _spec() | {"model": model}}, indent=2))

    assert call("validate", "--fill", file).code == 0
    assert json.loads(file.read_text())["spec"]["model"]["config"] == SIZES


def _spec() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(JOB % "    {}")["spec"]
    return spec


def test_each_of_several_jobs_takes_from_its_own_folder(call, tmp_path: Path) -> None:
    folder(tmp_path / "model")
    folder(tmp_path / "other", SMOLLM | {"num_hidden_layers": 4})
    text = JOB % "    huggingFace: {path: FOLDER}"
    file = tmp_path / "jobs.yaml"
    both = [text.replace("FOLDER", str(tmp_path / name)) for name in ("model", "other")]
    file.write_text("---\n".join([both[0], "kind: Namespace\napiVersion: v1\n", both[1]]))

    assert call("validate", "--fill", file).code == 0
    first, space, second = yaml.safe_load_all(file.read_text())
    assert (first["spec"]["model"]["numLayers"], second["spec"]["model"]["numLayers"]) == (32, 6)
    assert space == {"kind": "Namespace", "apiVersion": "v1"}


def test_what_cannot_be_written_in_place_is_said_and_the_file_is_as_it_was(call, tmp_path: Path) -> None:
    folder(tmp_path / "model")
    anchored = "    &model {huggingFace: {path: FOLDER}}"
    file = job(tmp_path, anchored)
    text = file.read_text().replace("  device: cpu", "  device: cpu\n  template: {metadata: *model}")
    file.write_text(text)

    result = call("validate", "--fill", file)

    assert result.code == 2
    assert (
        "write this into spec.model yourself:\n    numLayers: 32\n    config:\n      model_type: llama\n" in result.err
    )
    assert file.read_text() == text


def test_a_model_that_cannot_be_counted_gets_its_length_alone(call, tmp_path: Path) -> None:
    folder(tmp_path / "model", {"model_type": "mamba2", "num_hidden_layers": 4, "hidden_size": 64, "vocab_size": 512})
    file = job(tmp_path, "    huggingFace: {path: FOLDER}")

    result = call("plan", "--write", file)

    assert result.code == 0, result.err
    assert (
        "numLayers 6; no config, so it is planned as one of unknown costs: spec.model.config.num_attention"
        in result.err
    )
    assert yaml.safe_load(file.read_text())["spec"]["model"]["numLayers"] == 6
    assert "the number of layers alone" in result.out
    assert "`pipelinejob validate --fill FILE` writes its sizes" in result.out


def test_a_plan_of_what_was_written_counts_the_model(call, tmp_path: Path) -> None:
    folder(tmp_path / "model")
    file = job(tmp_path, "    huggingFace: {path: FOLDER}")

    result = call("plan", "--write", file, "-o", "json")

    planned = json.loads(result.out)
    assert planned["prediction"]["source"] == "analytic"
    tied = 49152 * 576  # both the first and the last stage hold it
    assert sum(stage["parameters"] for stage in planned["stages"]) == 134_515_008 + tied


BAD = {
    "no folder": (None, 2, "there is no such folder on this machine; call this where"),
    "no config": ({}, 2, "holds no config.json; name a folder as save_pretrained"),
    "half a config": ({"config.json": "{"}, 2, "config.json: is no JSON"),
    "a list": ({"config.json": "[]"}, 2, "config.json: is no mapping of fields"),
    "no length": ({"config.json": '{"model_type": "t5"}'}, 2, "does not say how many layers there are"),
}


@pytest.mark.parametrize("claim", BAD)
def test_a_folder_that_is_no_models_gets_a_sentence_and_the_manifest_stays(call, tmp_path: Path, claim: str) -> None:
    files, code, words = BAD[claim]
    if files is not None:
        (tmp_path / "model").mkdir()
        for name, text in files.items():
            (tmp_path / "model" / name).write_text(text)
    file = job(tmp_path, "    huggingFace: {path: FOLDER}")
    before = file.read_text()

    result = call("validate", "--fill", file)

    assert (result.code, file.read_text()) == (code, before)
    assert f"spec.model.huggingFace.path: {tmp_path / 'model'}" in result.err
    assert words in result.err


def gguf(file: Path, *fields: tuple[str, int, bytes]) -> None:
    told = [text(name) + struct.pack("<I", kind) + value for name, kind, value in fields]
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields)) + b"".join(told))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def test_a_gguf_file_says_how_many_layers_there_are(call, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    letters = struct.pack("<IQ", 8, 2) + text("a") + text("bc")
    gguf(
        tmp_path / "model" / "q4.gguf",
        ("general.architecture", 8, text("llama")),
        ("tokenizer.ggml.tokens", 9, letters),
        ("tokenizer.ggml.scores", 9, struct.pack("<IQ2f", 6, 2, 0.5, 1.5)),
        ("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        ("llama.block_count", 4, struct.pack("<I", 30)),
    )
    file = job(tmp_path, "    huggingFace: {path: FOLDER}")

    result = call("validate", "--fill", file)

    assert result.code == 0
    assert yaml.safe_load(file.read_text())["spec"]["model"]["numLayers"] == 32
    assert "planned as one of unknown costs: q4.gguf is GGUF" in result.err

    gguf(tmp_path / "model" / "q4.gguf", ("general.architecture", 8, text("llama")))
    assert "q4.gguf says no number of blocks" in call("validate", "--fill", file).err


def test_run_takes_what_a_manifest_lacks_and_leaves_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "model")
    written = yaml.safe_load(job(tmp_path, "    huggingFace: {path: FOLDER}").read_text())
    said = written | {"spec": written["spec"] | {"model": written["spec"]["model"] | {"numLayers": 7}}}

    assert with_its_model(written)["spec"]["model"] == written["spec"]["model"] | {"numLayers": 32, "config": SIZES}
    assert f"read of {tmp_path / 'model'}: numLayers 32 and config of 8 fields" in capsys.readouterr().err
    assert with_its_model(said)["spec"]["model"]["numLayers"] == 7  # so that the difference is an error, by name
    whole = with_its_model(written)
    assert with_its_model(whole) is whole
    (tmp_path / "model" / "config.json").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelFolderError, match="holds no config"):
        with_its_model(written)
    (tmp_path / "model").rmdir()
    assert with_its_model(written) is written  # a volume of the cluster's, perhaps


def test_there_must_be_something_to_fill_and_to_write_into(call, tmp_path: Path) -> None:
    file = job(tmp_path, "    gpt: {numLayers: 2, hiddenSize: 64, numHeads: 4}")

    assert "no job in it has spec.model.huggingFace" in call("validate", "--fill", file).err
    assert "standard input cannot be written into" in call("plan", "--write", "-").err
    assert "a folder cannot be written into" in call("validate", "--fill", tmp_path).err
