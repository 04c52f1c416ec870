"""A folder that is no model's, or not the one that the manifest speaks of, is refused before anything is made of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelinejob.spec.job import Model
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.files.folder import open_folder, with_sizes
from pipelinejob_trainer.models.huggingface.positions import check_length

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 320,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OWN_CODE = {"auto_map": {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}}
CODE = "import pathlib\npathlib.Path(__file__).with_name('was-run').touch()\nraise RuntimeError('own code ran')\n"


def folder(at: Path, config: object = None, **more: Any) -> Path:
    at.mkdir(exist_ok=True)
    (at / "config.json").write_text(json.dumps(LLAMA | more if config is None else config))
    return at


def model(path: Path, *, num_layers: int = 4, config: Mapping[str, Any] | None = None, trusts: bool = False) -> Model:
    own = HuggingFaceModel(path=str(path), trust_remote_code=trusts)
    return Model(hugging_face=own, num_layers=num_layers, config=None if config is None else dict(config))


def test_a_folder_that_says_what_the_manifest_does_is_opened(tmp_path: Path) -> None:
    opened = open_folder(model(folder(tmp_path), config=LLAMA))

    assert (opened.config.hidden_size, opened.remarks) == (32, ())


def test_the_folders_vocabulary_bounds_the_tokens_where_the_manifest_says_none(tmp_path: Path) -> None:
    said = model(folder(tmp_path))

    assert said.vocabulary_size is None
    assert with_sizes(said).vocabulary_size == 320
    uncounted = folder(tmp_path, {"model_type": "mamba", "num_hidden_layers": 2, "vocab_size": 320, "hidden_size": 8})
    assert with_sizes(model(uncounted)).vocabulary_size is None


def _file(at: Path) -> Path:
    at.touch()
    return at


def _holding(at: Path, *names: str) -> Path:
    for name in names:
        (at / name).write_text('{"base_model_name_or_path": "meta/llama"}')
    return at


def _text(at: Path, text: str) -> Path:
    (at / "config.json").write_text(text)
    return at


BAD = {
    "no such folder": (lambda at: at / "none", "none is not there; every stage needs the model's folder at this path"),
    "a file": (lambda at: _file(at / "model.bin"), "model.bin is a file; name its folder"),
    "an empty folder": (lambda at: at, "holds no config.json, nothing at all; name a folder as save_pretrained"),
    "other files": (lambda at: _holding(at, "a", "b", "c", "d"), "holds no config.json, only a, b, c and 1 more"),
    "an adapter": (lambda at: _holding(at, "adapter_config.json"), "no config.json, but an adapter of meta/llama"),
    "half a config": (lambda at: _text(at, '{"a": '), "config.json is no JSON"),
    "a list": (lambda at: _text(at, "[]"), "config.json is no mapping"),
    "no type": (lambda at: folder(at, {"hidden_size": 3}), "has no model_type"),
    "a type of tomorrow": (
        lambda at: folder(at, model_type="llama9"),
        r"has the model type 'llama9', which transformers 5\.\S+ does not know",
    ),
    "codes": (
        lambda at: folder(at, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"has a quantization_config \(gptq\): its weights are codes, which have no gradients",
    ),
    "heads that do not divide the width": (
        lambda at: folder(at, num_attention_heads=5, num_key_value_heads=5),
        r"is refused by transformers: .*hidden size \(32\) is not a multiple of the number of attention heads \(5\)",
    ),
    "heads that cannot share keys": (
        lambda at: folder(at, num_key_value_heads=3),
        "num_attention_heads 4 cannot be divided among num_key_value_heads 3",
    ),
    "a size in words": (lambda at: folder(at, hidden_size="wide"), "is refused by transformers: .*hidden_size"),
}


@pytest.mark.parametrize("claim", BAD)
def test_a_folder_that_is_no_models_gets_a_sentence(tmp_path: Path, claim: str) -> None:
    make, words = BAD[claim]
    path = make(tmp_path)

    with pytest.raises(UserError, match=words) as caught:
        open_folder(model(path))
    assert str(caught.value).startswith("spec.model.huggingFace.path: ")
    assert str(tmp_path) in str(caught.value)
    assert caught.value.reason == "BadHuggingFaceModel"


OTHER: dict[str, tuple[Mapping[str, Any], str]] = {
    "length": (
        {"num_layers": 5},
        r"^spec.model.numLayers: is 5, but \S+config.json has num_hidden_layers 2, which makes 4 with embedding",
    ),
    "a size": (
        {"config": LLAMA | {"hidden_size": 64}},
        r"^spec.model.config.hidden_size: is 64, but \S+config.json has 32; the plan was made for the manifest's",
    ),
    "several sizes": (
        {"config": LLAMA | {"hidden_size": 64, "vocab_size": 99}},
        r"vocab_size: is 99, but \S+config.json has 320 \(and hidden_size\)",
    ),
    "what only the folder has": (
        {"config": {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}},
        r"^spec.model.config.num_key_value_heads: is not given, but \S+config.json has 2",
    ),
    "another family": (
        {"config": LLAMA | {"model_type": "qwen2"}},
        r'^spec.model.config.model_type: is "qwen2", but \S+config.json has "llama"',
    ),
}


@pytest.mark.parametrize("claim", OTHER)
def test_a_folder_other_than_the_plan_was_made_for_is_refused_by_field(tmp_path: Path, claim: str) -> None:
    said, words = OTHER[claim]

    with pytest.raises(UserError, match=words) as caught:
        open_folder(model(folder(tmp_path), **said))
    assert caught.value.reason == "OtherModel"
    assert "`pipelinejob validate --fill`" in str(caught.value)


def test_code_of_a_folder_is_refused_by_name_and_never_run(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA | OWN_CODE | {"model_type": "own"})
    for name in ("configuration_own.py", "modeling_own.py"):
        (path / name).write_text(CODE)

    with pytest.raises(UserError, match=r"needs code that it brings along .auto_map. .*trustRemoteCode to true"):
        open_folder(model(path))
    assert not list(tmp_path.rglob("was-run"))
    with pytest.raises(UserError, match="is refused by transformers: own code ran"):
        open_folder(model(path, trusts=True))


def test_of_a_family_that_transformers_knows_its_own_code_is_taken_and_said(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA | OWN_CODE)
    (path / "configuration_own.py").write_text(CODE)

    (remark,) = open_folder(model(path)).remarks
    assert "brings code of its own (auto_map), which is not run" in remark
    assert not list(tmp_path.rglob("was-run"))


def _skeleton(path: Path) -> tuple[torch.nn.Module, Any]:
    from transformers import AutoModelForCausalLM

    config = open_folder(model(path)).config
    with torch.device("meta"):
        made: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return made, config


def test_sequences_longer_than_learned_positions_are_refused(tmp_path: Path) -> None:
    made, config = _skeleton(folder(tmp_path, GPT2))

    assert check_length(made, config, 64) is None
    words = r"spec.data.sequenceLength: 65 tokens are more than the 64 .*wpe.weight.*use at most 64"
    with pytest.raises(UserError, match=words):
        check_length(made, config, 65)


def test_sequences_longer_than_rotary_positions_were_trained_for_are_said(tmp_path: Path) -> None:
    made, config = _skeleton(folder(tmp_path))

    assert check_length(made, config, 64) is None
    remark = check_length(made, config, 65)
    assert remark is not None
    assert "65 tokens are more than the 64 that the model was made for" in remark
