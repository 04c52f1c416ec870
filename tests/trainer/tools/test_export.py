"""What is exported is what was trained: transformers and PEFT give the same logits; nothing is left half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, LlamaConfig, MixtralConfig

from pipelinejob.contract.trained import Trained
from pipelinejob.spec.job import Data, DecoderModel, GptModel, Lora, Model, Training
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.export.export import main
from pipelinejob_trainer.export.request import Request
from pipelinejob_trainer.export.writing import new_folder
from pipelinejob_trainer.models.lora import stirred
from pipelinejob_trainer.models.part import Part
from support.serving.gguf_files import BLOCKS, write_gguf
from support.training.saved_models import moved, saved, whole

LENGTH = 16
DATA = Data(paths=("unused",), sequence_length=LENGTH)
TOKENS = torch.arange(2 * LENGTH).reshape(2, LENGTH) * 7 % 256
SIZES = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
DECODER = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "num_key_value_heads": 2, "feed_forward_size": 48}
OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = Lora(rank=4, alpha=8.0, targets=("*",))


def trained(model: Model, lora: Lora | None = None) -> Trained:
    return Trained(model=model, data=DATA, training=Training(steps=1, seed=3, lora=lora))


def folder_of(path: Path, config: Any) -> Model:
    """Return a model of a folder with random weights, a tokenizer's file, and the rest of what folders hold."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    return Model(hugging_face=HuggingFaceModel(path=str(path)), num_layers=config.num_hidden_layers + 2)


@torch.no_grad()
def logits_of(part: Part) -> torch.Tensor:
    stream = TOKENS
    for layer in part.layers:
        stream = layer.module(stream)
    return stream


def exported(job: Trained, part: Part, tmp_path: Path, *cuts: int, **more: Any) -> Path:
    saved(tmp_path / "checkpoints", part, *(cuts or (2,)))
    main(job, Request(checkpoint=tmp_path / "checkpoints", to=tmp_path / "out", **more))
    return tmp_path / "out"


@torch.no_grad()
def logits_by_transformers(folder: Path) -> torch.Tensor:
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    return model.eval()(TOKENS).logits


FAMILIES: dict[str, Model] = {
    "gpt": Model(gpt=GptModel(num_layers=3, hidden_size=32, num_heads=4, dropout=0.1)),
    "tied gpt": Model(
        gpt=GptModel(num_layers=3, hidden_size=32, num_heads=4, feed_forward_size=40, tie_embeddings=True)
    ),
    "llama": Model(decoder=DecoderModel(**DECODER, tie_embeddings=True)),
    "mistral": Model(decoder=DecoderModel(**DECODER, sliding_window=8)),
    "qwen2": Model(decoder=DecoderModel(**DECODER, attention_bias=True)),
    "qwen3": Model(decoder=DecoderModel(**DECODER, head_norms=True, head_size=16)),
    "mixtral": Model(decoder=DecoderModel(**DECODER, experts={"num": 4})),
    "qwen3_moe": Model(decoder=DecoderModel(**DECODER, head_norms=True, experts={"num": 4, "normalized": False})),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_gives_a_built_in_models_logits(tmp_path: Path, name: str) -> None:
    job = trained(FAMILIES[name])
    part = moved(whole(job))

    folder = exported(job, part, tmp_path)

    assert torch.allclose(logits_by_transformers(folder), logits_of(part), rtol=1e-5, atol=2e-6)
    assert json.loads((folder / "config.json").read_text())["architectures"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True)
    return folder_of(tmp_path_factory.mktemp("llama"), config)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = MixtralConfig(**SIZES, **HEADS, num_local_experts=4, num_experts_per_tok=2)
    return folder_of(tmp_path_factory.mktemp("mixtral"), config)


@pytest.mark.parametrize("cuts", [(3,), (2, 4)])
def test_a_folders_model_comes_out_as_it_came_in_from_any_split(llama: Model, tmp_path: Path, cuts: tuple[int]) -> None:
    job = trained(llama)
    part = moved(whole(job))

    folder = exported(job, part, tmp_path, *cuts)

    assert torch.equal(logits_by_transformers(folder), logits_of(part))
    assert {each.name for each in folder.iterdir()} >= {"tokenizer.json", "generation_config.json", "config.json"}
    assert list(tmp_path.glob(".out*")) == []


def test_training_goes_on_from_an_exported_folder(llama: Model, tmp_path: Path) -> None:
    job = trained(llama)
    part = moved(whole(job))

    folder = exported(job, part, tmp_path)

    again = llama.model_copy(update={"hugging_face": HuggingFaceModel(path=str(folder))})
    assert torch.equal(logits_of(whole(trained(again))), logits_of(part))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_gguf_files_model_comes_out_as_transformers_reads_the_file(tmp_path: Path, family: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", family)
    named = Model(hugging_face=HuggingFaceModel(path=str(file)), num_layers=BLOCKS + 2)

    folder = exported(trained(named), whole(trained(named)), tmp_path)

    plain = {"gguf_file": file.name, "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, **plain).state_dict()
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], each) for name, each in expected.items())
    assert not list(folder.glob("*.gguf"))


def test_experts_are_taken_apart_again_as_the_familys_files_have_them(mixtral: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    job = trained(mixtral)
    part = moved(whole(job))

    folder = exported(job, part, tmp_path)

    assert torch.equal(logits_by_transformers(folder), logits_of(part))
    assert mixtral.hugging_face is not None
    original = load_file(Path(mixtral.hugging_face.path) / "model.safetensors")
    mine = load_file(folder / "model.safetensors")
    assert {name: each.shape for name, each in mine.items()} == {name: each.shape for name, each in original.items()}


def test_files_are_cut_to_a_size(llama: Model, tmp_path: Path) -> None:
    job = trained(llama)
    part = moved(whole(job))

    folder = exported(job, part, tmp_path, shard_bytes=30_000)

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert all((folder / file).stat().st_size < 40_000 for file in index["weight_map"].values())
    assert torch.equal(logits_by_transformers(folder), logits_of(part))


def test_bf16_halves_the_files(llama: Model, tmp_path: Path) -> None:
    job = trained(llama)
    folder = exported(job, moved(whole(job)), tmp_path, dtype=torch.bfloat16)

    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def adapted(job: Trained) -> Part:
    """Return a model with adapters that were trained."""
    part = whole(job)
    with torch.no_grad():
        for name, parameter in part.kept_parameters().items():
            dice = torch.Generator().manual_seed(len(name))
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=dice))
    return part


@pytest.mark.parametrize("name", ["gpt", "llama", "folder"])
def test_merged_adapters_give_the_logits_of_adapters(llama: Model, tmp_path: Path, name: str) -> None:
    job = trained(llama if name == "folder" else FAMILIES[name], LORA)
    part = adapted(job)

    folder = exported(job, part, tmp_path)

    assert torch.allclose(logits_by_transformers(folder), logits_of(part), rtol=1e-4, atol=1e-5)


@OF_PEFT
@torch.no_grad()
def test_peft_loads_adapters_alone_beside_the_folder(llama: Model, tmp_path: Path) -> None:
    job = trained(llama, LORA.model_copy(update={"rank_stabilised": True}))
    part = adapted(job)
    assert llama.hugging_face is not None

    folder = exported(job, part, tmp_path, adapters_only=True)

    base = AutoModelForCausalLM.from_pretrained(llama.hugging_face.path)
    model = peft.PeftModel.from_pretrained(base, folder)
    assert torch.equal(model.eval()(TOKENS).logits, logits_of(part))
    assert not list(folder.glob("model*"))
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == llama.hugging_face.path
    )


@OF_PEFT
@torch.no_grad()
def test_peft_loads_adapters_of_gpt_beside_its_exported_base(tmp_path: Path) -> None:
    plain, job = trained(FAMILIES["tied gpt"]), trained(FAMILIES["tied gpt"], LORA)
    part = adapted(job)
    base = exported(plain, whole(plain), tmp_path / "base")

    folder = exported(job, part, tmp_path / "adapters", adapters_only=True)

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert torch.allclose(model.eval()(TOKENS).logits, logits_of(part), rtol=1e-5, atol=2e-6)


def test_layers_of_ones_own_keep_their_global_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    job = trained(Model(entrypoint="layers.adapted_models:plain", num_layers=4), Lora(targets=("inner",)))
    part = adapted(job)

    folder = exported(job, part, tmp_path)

    held = load_file(folder / "model.safetensors")
    assert held.keys() == part.adapters.base
    assert json.loads((folder / "pipelinejob.json").read_text())["entrypoint"] == "layers.adapted_models:plain"
    with stirred([], 0), torch.no_grad():
        layer = next(each.module for each in part.layers if each.index == 1)
        given = torch.ones(1, 1, 256)
        expected = layer.inner(given)
        assert torch.allclose(
            nn.functional.linear(given, held["layers.1.inner.weight"], held["layers.1.inner.bias"]), expected, atol=1e-5
        )


def refused(tmp_path: Path, job: Trained, **more: Any) -> UserError:
    """Export, and look that it left nothing behind."""
    before = sorted(tmp_path.iterdir())
    request = {"checkpoint": tmp_path / "checkpoints", "to": tmp_path / "out"} | more
    with pytest.raises(UserError) as error:
        main(job, Request(**request))
    assert sorted(tmp_path.iterdir()) == before
    return error.value


def a_checkpoint(tmp_path: Path) -> Trained:
    job = trained(FAMILIES["gpt"])
    saved(tmp_path / "checkpoints", whole(job), 2)
    return job


def test_no_checkpoint_is_told(tmp_path: Path) -> None:
    error = refused(tmp_path, trained(FAMILIES["gpt"]))

    assert error.reason == "NoCheckpoint"
    assert f"{tmp_path / 'checkpoints'}: is not there" in str(error)


def test_what_a_killed_export_left_goes_with_the_next_one_and_a_living_ones_stays(tmp_path: Path) -> None:
    left, others = tmp_path / ".out.export-abcdefgh", tmp_path / ".out.kept"
    left.mkdir()
    (left / "model-00001.safetensors").write_bytes(b"half")
    others.mkdir()

    with new_folder(tmp_path / "out") as living, new_folder(tmp_path / "second") as second:
        assert sorted(tmp_path.iterdir()) == sorted([living, others, second])
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out", tmp_path / "second", others])


def test_a_target_that_exists_is_left_alone(tmp_path: Path) -> None:
    job = a_checkpoint(tmp_path)
    (tmp_path / "out").mkdir()

    assert "is there already, and nothing is overwritten" in str(refused(tmp_path, job))


def test_a_damaged_checkpoint_is_passed_over_or_refused_by_name(tmp_path: Path) -> None:
    job = a_checkpoint(tmp_path)
    shard = tmp_path / "checkpoints" / "step-00000004" / "stage-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    assert refused(tmp_path, job).reason == "NoCheckpoint"
    named = refused(tmp_path, job, checkpoint=tmp_path / "checkpoints" / "step-00000004")
    assert named.reason == "DamagedCheckpoint"
    assert "stage-00001.safetensors is not as it was written" in str(named)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            Model(gpt=GptModel(num_layers=3, hidden_size=64, num_heads=4)),
            "transformer.wpe.weight of shape (16, 32), the model one of shape (16, 64)",
        ),
        (Model(gpt=GptModel(num_layers=2, hidden_size=32, num_heads=4)), "it has a layer 4, the model 4 layers in all"),
        (Model(gpt=GptModel(num_layers=4, hidden_size=32, num_heads=4)), "it is of another model"),
        (FAMILIES["llama"], "it is of another model"),
    ],
)
def test_a_plan_of_another_model_is_refused(tmp_path: Path, model: Model, words: str) -> None:
    a_checkpoint(tmp_path)

    error = refused(tmp_path, trained(model))

    assert error.reason == "CheckpointMismatch"
    assert words in str(error)


@pytest.mark.parametrize("adapters_only", [False, True])
def test_adapters_of_another_base_are_refused(tmp_path: Path, *, adapters_only: bool) -> None:
    job = trained(FAMILIES["gpt"], LORA)
    saved(tmp_path / "checkpoints", adapted(job), 2)
    other = job.model_copy(update={"training": job.training.model_copy(update={"seed": 4})})

    error = refused(tmp_path, other, adapters_only=adapters_only)

    assert "its adapters belong to a model whose weights have the digest" in str(error)
    assert "it holds the adapters of a job" in str(refused(tmp_path, trained(FAMILIES["gpt"])))


def test_adapters_alone_need_adapters(tmp_path: Path) -> None:
    assert refused(tmp_path, a_checkpoint(tmp_path), adapters_only=True).reason == "NoAdapters"


def test_a_decoder_that_transformers_has_not_is_refused_by_name(tmp_path: Path) -> None:
    sizes = DecoderModel(**DECODER, head_norms=True, attention_bias=True)
    job = trained(Model(decoder=sizes))
    saved(tmp_path / "checkpoints", whole(job), 2)

    error = refused(tmp_path, job)

    assert error.reason == "NoSuchModel"
    assert "the nearest, qwen3, differs in: attention_bias" in str(error)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelinejob_trainer.export import writing

    job = a_checkpoint(tmp_path)
    write: Callable[..., str] = writing.write_shard

    def full(path: Path, *given: Any, **more: Any) -> str:
        if path.name.endswith("00002.safetensors"):
            raise OSError(28, "No space left on device")
        return write(path, *given, **more)

    monkeypatch.setattr(writing, "write_shard", full)

    assert "cannot be written: No space left on device; free space there" in str(
        refused(tmp_path, job, shard_bytes=20_000)
    )


def test_what_a_config_says_of_a_folder_is_kept(llama: Model, tmp_path: Path) -> None:
    job = trained(llama)
    folder = exported(job, whole(job), tmp_path)

    assert llama.hugging_face is not None
    shutil.rmtree(tmp_path / "checkpoints")
    before, after = (AutoConfig.from_pretrained(each).to_dict() for each in (llama.hugging_face.path, folder))
    assert {name for name in before if before[name] != after[name]} <= {"dtype", "_name_or_path"}
