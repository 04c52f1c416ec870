"""GGUF read by each stage for itself: transformers' values, of its own tensors only, or a sentence why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelinejob.spec.job import Model
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.files import folder as folders
from pipelinejob_trainer.models.huggingface.files.folder import open_folder
from pipelinejob_trainer.models.huggingface.files.gguf_file import GgufFile
from pipelinejob_trainer.serving.front.text import FolderTokenizer
from support.serving.gguf_files import BLOCKS, FAMILIES, write_gguf
from support.serving.serving_chains import serving, stages_of
from support.training.hugging_face_folders import room_for, weights_of


def read_by_transformers(file: Path) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_every_tensor_is_what_transformers_makes_of_the_file(tmp_path: Path, family: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", family)
    weights, model = weights_of(tmp_path, blocks=BLOCKS)
    found = room_for(model)
    weights.fill(found)

    expected = read_by_transformers(file).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert weights.remark is None


def test_a_stage_turns_only_its_own_tensors_into_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model.gguf", "llama")
    weights, model = weights_of(tmp_path, blocks=BLOCKS)
    read: list[str] = []
    values = GgufFile.values
    monkeypatch.setattr(GgufFile, "values", lambda self, name: read.append(name) or values(self, name))

    weights.fill(room_for(model, wanted=lambda name: name.startswith("model.layers.2.")))

    assert len(read) == 9
    assert all(name.startswith("model.layers.2.") for name in read)


def test_a_file_is_served_by_two_stages_as_transformers_reads_it(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "llama", tokens=True)
    tokenizer = FolderTokenizer(tmp_path)
    with serving(stages_of(tmp_path, 2, blocks=BLOCKS)) as served:
        told = served.submit(tokenizer.encode("hello"), 8)
        assert told.done.wait(180)

    prompt = torch.tensor([tokenizer.encode("hello")])
    expected = read_by_transformers(file).generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert told.tokens == expected[0, prompt.shape[1] :].tolist()
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert tokenizer.ends == {0}


def test_a_file_may_be_named_itself_and_has_to_be_where_there_are_several(tmp_path: Path) -> None:
    chosen = write_gguf(tmp_path / "b.gguf", "llama")
    write_gguf(tmp_path / "a.gguf", "qwen2")

    assert opened(chosen).config.model_type == "llama"
    with pytest.raises(UserError, match=r"holds a\.gguf, b\.gguf; name one of these files instead of the folder"):
        opened(tmp_path)


def test_safetensors_go_before_a_file_that_lies_beside_them(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    named, sizes = FAMILIES["llama"]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(named, **sizes)).save_pretrained(tmp_path)
    write_gguf(tmp_path / "model.gguf", "qwen2")

    assert (opened(tmp_path).config.model_type, opened(tmp_path).gguf) == ("llama", None)


def opened(path: Path, *, blocks: int = BLOCKS) -> folders.ModelFolder:
    return open_folder(Model(hugging_face=HuggingFaceModel(path=str(path)), num_layers=blocks + 2))


def _cut_off(at: Path) -> None:
    file = write_gguf(at / "model.gguf", "llama")
    file.write_bytes(file.read_bytes()[:-5000])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another file": (lambda at: (at / "a.gguf").write_bytes(b"PK" * 50), "a.gguf is refused .* GGUF magic"),
    "one of several parts": (
        lambda at: [(at / f"m-0000{part}-of-00002.gguf").touch() for part in (1, 2)],
        "m-00001-of-00002.gguf is one of several parts .* llama-gguf-split --merge",
    ),
    "an architecture that transformers reads otherwise": (
        lambda at: write_gguf(at / "model.gguf", "llama", architecture="lfm2"),
        "architecture lfm2, which stages cannot read part of; convert it once: .*gguf_file='model.gguf'",
    ),
    "an architecture that nobody knows": (
        lambda at: write_gguf(at / "model.gguf", "llama", architecture="falcon-h1"),
        "is refused by transformers: GGUF model with architecture falcon-h1 is not supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("claim", BAD)
def test_a_file_that_cannot_be_read_gets_a_sentence(tmp_path: Path, claim: str) -> None:
    make, words = BAD[claim]
    make(tmp_path)

    with pytest.raises(UserError, match=words) as caught:
        opened(tmp_path)
    assert caught.value.reason == "BadHuggingFaceModel"


def test_a_file_that_was_cut_off_gets_a_sentence(tmp_path: Path) -> None:
    _cut_off(tmp_path)

    with pytest.raises(
        UserError, match=r"model\.gguf is refused by transformers: .*; correct it, or download it again"
    ):
        opened(tmp_path)


def test_without_the_package_that_reads_it_a_file_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", "llama")
    monkeypatch.setattr(folders.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(UserError, match=r"the package gguf, which is not installed; pip install 'pipelinejob\[gguf\]'"):
        opened(tmp_path)


def test_another_number_of_layers_is_refused_by_the_files_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "llama")

    with pytest.raises(UserError, match=r"numLayers: is 5, but .*model\.gguf has num_hidden_layers 4"):
        opened(tmp_path, blocks=3)
