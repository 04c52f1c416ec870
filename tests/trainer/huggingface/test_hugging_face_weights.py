"""What a stage reads of a Hugging Face folder: transformers' values, of its own tensors only, or a sentence why not."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelinejob_trainer.base.errors import UserError
from support.training.hugging_face_folders import BLOCKS, LLAMA, room_for, weights_of

GPT2: dict[str, Any] = {
    "vocab_size": 320,
    "n_embd": 32,
    "n_layer": BLOCKS,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}
FAMILIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "plain": ("llama", LLAMA),
    "tied, names with a prefix": ("gpt2", GPT2),
    "experts that are fused": ("mixtral", LLAMA | EXPERTS),
    "experts that are fused, and a buffer that is kept": ("deepseek_v3", LLAMA | LATENT),
    "tensors that are cut apart": ("phi3", LLAMA),
    "tied, norms after": ("gemma2", LLAMA | {"head_dim": 8}),
    "keys renamed": ("jamba", LLAMA | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}),
}


def written(to: Path, kind: str, sizes: Mapping[str, Any], *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Let transformers write a random model, in files of few tensors each."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=dtype)
    with torch.no_grad():
        for each in (*model.parameters(), *model.buffers()):
            if each.is_floating_point():
                each.add_(torch.randn_like(each), alpha=0.1)  # so that norms and biases differ, too
    model.save_pretrained(to, max_shard_size="24KB")
    return to


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("llama"), "llama", LLAMA)


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.mark.parametrize("claim", FAMILIES)
@pytest.mark.filterwarnings("ignore")  # transformers' own, of families that few use
def test_every_tensor_is_what_transformers_makes_of_the_folder(tmp_path: Path, claim: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = written(tmp_path, *FAMILIES[claim])
    weights, model = weights_of(folder)
    found = room_for(model)
    weights.fill(found)

    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert weights.remark is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_whatever_the_file_holds_becomes_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = written(tmp_path, "llama", LLAMA, dtype=dtype)
    weights, _ = weights_of(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    found = torch.empty(48, 32)
    weights.fill({name: found})

    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    stored = load_file(folder / files[name])[name]
    assert stored.dtype is dtype
    assert torch.equal(found, stored.float())


def test_names_without_the_models_prefix_are_found_as_transformers_finds_them(tmp_path: Path) -> None:
    folder = written(tmp_path, "gpt2", GPT2, dtype=torch.float32)
    tensors = {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}
    for file in folder.glob("model*"):
        file.unlink()
    old = {name.removeprefix("transformer."): each for name, each in tensors.items()}
    save_file(old | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, folder / "model.safetensors", {"format": "pt"})
    weights, model = weights_of(folder)
    found = room_for(model)
    weights.fill(found)

    assert all(torch.equal(found[name], each) for name, each in tensors.items())
    assert torch.equal(found["lm_head.weight"], tensors["transformer.wte.weight"])


def test_a_stage_opens_only_the_files_that_hold_its_tensors(copied: Path) -> None:
    files = json.loads((copied / "model.safetensors.index.json").read_text())["weight_map"]
    own = {file for name, file in files.items() if ".layers.1." in name}
    others = set(files.values()) - own
    assert own, others
    for file in others:
        (copied / file).write_text("not to be opened")
    weights, model = weights_of(copied)
    found = room_for(model, wanted=lambda name: ".layers.1." in name)
    weights.fill(found)

    assert all(bool(each.isfinite().all()) for each in found.values())


def test_a_tied_table_is_read_by_the_name_that_the_file_has(tmp_path: Path) -> None:
    folder = written(tmp_path, "llama", LLAMA | {"tie_word_embeddings": True}, dtype=torch.float32)
    weights, model = weights_of(folder)
    head = torch.empty(320, 32)
    weights.fill({"lm_head.weight": head})

    embedding = torch.empty(320, 32)
    weights.fill({"model.embed_tokens.weight": embedding})
    assert torch.equal(head, embedding)
    assert "lm_head.weight" in model.state_dict()


@pytest.mark.parametrize("is_there", ["both", "the head's alone"])
def test_a_tied_table_is_read_whichever_of_its_places_the_file_names(tmp_path: Path, is_there: str) -> None:
    folder = written(tmp_path, "llama", LLAMA | {"tie_word_embeddings": True})

    def by_the_head(name: str, each: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        if name == "model.embed_tokens.weight":
            yield "lm_head.weight", each.clone()
        if name != "model.embed_tokens.weight" or is_there == "both":
            yield name, each

    _rewritten(folder, by_the_head)
    weights, model = weights_of(folder)
    found = room_for(model, wanted=lambda name: name in {"lm_head.weight", "model.embed_tokens.weight"})
    weights.fill(found)

    expected = load_file(folder / "model.safetensors")["lm_head.weight"].float()
    assert all(torch.equal(each, expected) for each in found.values())
    assert weights.remark is None


def test_a_head_that_is_not_tied_and_not_there_is_refused(copied: Path) -> None:
    _rewritten(copied, _without("lm_head"))
    weights, model = weights_of(copied)

    with pytest.raises(UserError, match=r"nothing for lm_head.weight, which a LlamaForCausalLM needs"):
        weights.fill(room_for(model))


def test_what_the_folder_holds_in_vain_is_said(copied: Path) -> None:
    _add(copied, {"model.layers.0.mlp.router.weight": torch.ones(2), "vision.patch": torch.ones(2)})

    weights, _ = weights_of(copied)
    assert weights.remark is not None
    assert "2 tensors belong to nothing in a LlamaForCausalLM" in weights.remark
    assert "model.layers.0.mlp.router.weight, vision.patch" in weights.remark


def _add(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file(dict(tensors), folder / "more.safetensors")
    _changed_index(folder, lambda files: files | dict.fromkeys(tensors, "more.safetensors"))


def _changed_index(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"weight_map": change(content["weight_map"])}))


def _rewritten(folder: Path, change: Callable[[str, torch.Tensor], Iterator[tuple[str, torch.Tensor]]]) -> None:
    """Write all tensors anew, in one file."""
    tensors = {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}
    for file in folder.glob("model*"):
        file.unlink()
    changed = dict(new for name, each in tensors.items() for new in change(name, each))
    save_file({name: each.contiguous() for name, each in changed.items()}, folder / "model.safetensors")


def _without(*parts: str) -> Callable[[str, torch.Tensor], Iterator[tuple[str, torch.Tensor]]]:
    return lambda name, each: iter(() if any(part in name for part in parts) else ((name, each),))


def _narrow(name: str, each: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield name, each[:40] if "up_proj" in name else each


def _renamed(name: str, each: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield name.replace("model.layers", "blocks").replace("model.", "base_").replace("lm_head", "out"), each


def _quantised(name: str, each: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield name, each.to(torch.float8_e4m3fn) if "up_proj" in name else each


def _cut_off(folder: Path) -> None:
    file = max(folder.glob("*.safetensors"), key=lambda each: each.stat().st_size)
    for each in folder.glob("*.safetensors"):
        if each != file:
            shutil.copy(file, each)  # so that whatever is opened first is cut off
    for each in folder.glob("*.safetensors"):
        each.write_bytes(each.read_bytes()[:-7])


def _only(folder: Path, *names: str) -> None:
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    for name in names:
        (folder / name).write_text("{}")


def _for_all(folder: Path, content: bytes) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(content)


def _header(folder: Path, header: object) -> None:
    text = json.dumps(header).encode()
    _for_all(folder, len(text).to_bytes(8, "little") + text + bytes(64))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a download": (
        lambda at: (at / "model-00002-of-00004.safetensors").unlink(),
        "model.safetensors.index.json names model-00002-of-00004.safetensors, which the folder does not hold",
    ),
    "parts without an index": (
        lambda at: (at / "model.safetensors.index.json").unlink(),
        "but neither model.safetensors nor model.safetensors.index.json; download the rest of it",
    ),
    "a file that is cut off": (_cut_off, r"is cut off: its header speaks of \d+ bytes, and it has \d+"),
    "an empty file": (lambda at: _for_all(at, b""), "is no safetensors file, or was cut off within its header"),
    "a page of an error": (lambda at: _for_all(at, b"<html>Not found</html>"), "is no safetensors file, or was cut"),
    "a pointer": (
        lambda at: _for_all(at, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    ),
    "a header of another form": (lambda at: _header(at, {"a": {"dtype": "F32"}}), "its header has another form"),
    "a header that miscounts": (
        lambda at: _header(at, {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}),
        "gives a as many bytes as their shapes do not take",
    ),
    "an index of something else": (
        lambda at: (at / "model.safetensors.index.json").write_text("[]"),
        "is no index of safetensors",
    ),
    "a file without what the index says": (
        lambda at: _changed_index(
            at, lambda files: files | {"model.norm.weight": files["model.layers.0.self_attn.k_proj.weight"]}
        ),
        r"safetensors has no tensor model.norm.weight, which \S+index.json says it has",
    ),
    "a missing tensor": (
        lambda at: _rewritten(at, _without("1.mlp.up_proj", "1.mlp.gate")),
        r"has nothing for model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.up_proj.weight, which a LlamaForC",
    ),
    "another architecture's weights": (
        lambda at: _rewritten(at, _renamed),
        "holds no tensor of a LlamaForCausalLM, but .* and 18 more; these are another model's weights",
    ),
    "another size's weights": (
        lambda at: _rewritten(at, _narrow),
        r"model.layers.0.mlp.up_proj.weight has the shape \(40, 32\), and \(48, 32\) by config.json",
    ),
    "codes": (
        lambda at: _rewritten(at, _quantised),
        "model.layers.0.mlp.up_proj.weight is stored as F8_E4M3, which cannot be trained",
    ),
    "pickled weights": (
        lambda at: _only(at, "pytorch_model.bin"),
        r"pytorch_model.bin, which can only be read whole; write them once as safetensors: python -c .*save_pretrained",
    ),
    "an adapter": (
        lambda at: (at / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/llama"}'),
        r"an adapter of meta/llama .*merge_and_unload",
    ),
    "no weights at all": (_only, "holds no weights .* set spec.model.huggingFace.weights to Random"),
}  # fmt: skip


@pytest.mark.parametrize("claim", BAD)
def test_a_folder_that_cannot_be_read_gets_a_sentence(copied: Path, claim: str) -> None:
    spoil, words = BAD[claim]
    spoil(copied)

    with pytest.raises(UserError, match=words) as caught:
        _read_all(copied)
    assert str(caught.value).startswith(f"spec.model.huggingFace.path: {copied}")


def _read_all(folder: Path) -> None:
    weights, model = weights_of(folder)
    weights.fill(room_for(model))


def test_experts_that_are_not_all_there_are_refused_with_their_names(tmp_path: Path) -> None:
    folder = written(tmp_path, "mixtral", LLAMA | EXPERTS)
    _rewritten(folder, _without("layers.1.block_sparse_moe.experts.3"))
    weights, model = weights_of(folder)

    words = r"layers.1.mlp.experts.gate_up_proj \(of .*experts.0.w1.* more\) has the shape \(3, 96, 32\), and \(4, 96"
    with pytest.raises(UserError, match=words):
        weights.fill(room_for(model, wanted=lambda name: "gate_up_proj" in name))


def test_a_tied_table_that_is_two_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, "llama", LLAMA | {"tie_word_embeddings": True})

    def other_head(name: str, each: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield name, each
        if name == "model.embed_tokens.weight":
            yield "lm_head.weight", each + 1

    _rewritten(folder, other_head)
    weights, model = weights_of(folder)
    with pytest.raises(UserError, match=r"differs from \S+, to which config.json ties it .tie_word_embeddings."):
        weights.fill(room_for(model, wanted=lambda name: name == "lm_head.weight"))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        weights.fill(room_for(model, wanted=lambda name: name == "model.embed_tokens.weight"))
