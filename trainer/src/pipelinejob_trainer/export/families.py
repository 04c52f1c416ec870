"""Which model of transformers each of ours is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelinejob.contract.trained import Trained
from pipelinejob.spec.families.decoder import DecoderModel
from pipelinejob.spec.families.decoder_config import decoder_model_of
from pipelinejob.spec.job import GptModel
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.export.target import Target
from pipelinejob_trainer.models.decoder.names import theirs_of_ours

# What a folder holds beside weights: configs, tokenizers, templates, code, licences.
_COPIED = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}
_NOT_COPIED = {"config.json", "adapter_config.json"}
_ALWAYS_COPIED = ("LICENSE", "NOTICE")
_NOTHING_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # bytes are the tokens

_OF_GPT_BLOCK = {
    "attention_norm": "ln_1",
    "qkv": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward_in": "mlp.c_fc",
    "feed_forward_out": "mlp.c_proj",
}
_TURNED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # transformers' Conv1D: (inputs, outputs)


def target_of(trained: Trained) -> Target | None:
    """Return the model of transformers that equals what was trained; None for layers of a user's own.

    Raises UserError where transformers has none.
    """
    model = trained.model
    if model.gpt is not None:
        return _gpt(model.gpt, trained.data.sequence_length)
    if model.decoder is not None and isinstance(model.decoder, DecoderModel):
        return _decoder(model.decoder, trained.data.sequence_length)
    return _hugging_face(trained) if model.hugging_face is not None else None


def _gpt(model: GptModel, sequence_length: int) -> Target:
    """Return GPT-2, of which ours is one with the exact GELU."""
    config = {
        "model_type": "gpt2",
        "vocab_size": model.vocabulary_size,
        "n_positions": sequence_length,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.feed_forward_size or 4 * model.hidden_size,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": model.tie_embeddings,
        "use_cache": True,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout),
        **_NOTHING_SPECIAL,
    }
    last = model.num_layers + 1
    outside = {
        "layers.0.token.weight": "transformer.wte.weight",
        "layers.0.position.weight": "transformer.wpe.weight",
        f"layers.{last}.norm.weight": "transformer.ln_f.weight",
        f"layers.{last}.norm.bias": "transformer.ln_f.bias",
        f"layers.{last}.logits.weight": "lm_head.weight",
    }

    def full(name: str) -> str:
        if name in outside:
            return outside[name]
        _, index, module, rest = name.split(".", 3)
        return f"transformer.h.{int(index) - 1}.{_OF_GPT_BLOCK.get(module, module)}.{rest}"

    turned = {f"transformer.h.{block}.{name}.weight" for block in range(model.num_layers) for name in _TURNED}
    return _made(config, full=full, transposed=frozenset(turned))


def _decoder(model: DecoderModel, sequence_length: int) -> Target:
    config = decoder_config(model, positions=sequence_length)
    names = theirs_of_ours(model)
    return _made(config, full=lambda name: names.get(name, name))


def decoder_config(model: DecoderModel, *, positions: int) -> dict[str, Any]:
    """Return the config of transformers that is the built-in decoder of these sizes.

    Raises UserError where transformers has none: proved by reading it back.
    """
    experts = model.experts
    if experts:
        kind = "qwen3_moe" if model.head_norms else "mixtral"
    elif model.head_norms:
        kind = "qwen3"
    elif model.attention_bias:
        kind = "qwen2"
    else:
        kind = "mistral" if model.sliding_window else "llama"
    config = {
        "model_type": kind,
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.width_of_head,
        "intermediate_size": model.feed_forward_size,
        "vocab_size": model.vocabulary_size,
        "tie_word_embeddings": model.tie_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rope_parameters": _rope(model),
        **_window(model, kind),
        **_NOTHING_SPECIAL,
    }
    if kind == "qwen2":
        del config["head_dim"]
    if experts:
        config |= {
            "num_experts_per_tok": experts.per_token,
            "router_aux_loss_coef": experts.auxiliary_loss,
            **({"num_experts": experts.num} if kind == "qwen3_moe" else {"num_local_experts": experts.num}),
        }
    if kind == "qwen3_moe":
        config |= {
            "moe_intermediate_size": model.feed_forward_size,
            "norm_topk_prob": experts is not None and experts.normalized,
        }
    _prove(model, config, kind)
    return config


def _rope(model: DecoderModel) -> dict[str, Any]:
    scaling = model.rope_scaling
    base: dict[str, Any] = {"rope_theta": model.rope_theta, "rope_type": "default"}
    if scaling is None:
        return base
    base |= {"rope_type": scaling.kind.value, "factor": scaling.factor}
    if scaling.kind.value == "linear":
        return base
    return base | {
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }


def _window(model: DecoderModel, kind: str) -> dict[str, Any]:
    if kind in {"qwen2", "qwen3"}:
        has = model.sliding_window is not None
        return {"use_sliding_window": has, "sliding_window": model.sliding_window, "max_window_layers": 0}
    if kind == "qwen3_moe":
        return {"use_sliding_window": model.sliding_window is not None, "sliding_window": model.sliding_window}
    return {} if kind == "llama" else {"sliding_window": model.sliding_window}


def _prove(model: DecoderModel, config: Mapping[str, Any], kind: str) -> None:
    """Check that the config, read back, is the model."""
    found = decoder_model_of(config)
    if isinstance(found, DecoderModel) and _same(found) == _same(model):
        return
    why = (
        found
        if isinstance(found, str)
        else ", ".join(name for name, value in _same(model).items() if _same(found)[name] != value)
    )
    raise UserError(
        "NoSuchModel",
        f"spec.model.decoder: transformers has no model of these sizes; the nearest, {kind}, differs in: {why}; export"
        " to raw safetensors is for layers of your own alone, so keep the checkpoint, whose files are safetensors",
    )


def _same(model: DecoderModel) -> dict[str, Any]:
    """Return what a model computes by, however it was written down."""
    sizes = model.model_dump() | {"num_key_value_heads": model.key_value_heads, "head_size": model.width_of_head}
    if model.experts:
        sizes["experts"] = model.experts.model_dump() | {"auxiliary_loss": 0.0}
    return sizes


def _hugging_face(trained: Trained) -> Target:
    from pipelinejob_trainer.models.huggingface.build import checked  # noqa: PLC0415  # transformers, seconds to import
    from pipelinejob_trainer.models.huggingface.cut import cut  # noqa: PLC0415  # as above
    from pipelinejob_trainer.models.huggingface.files.folder import open_folder  # noqa: PLC0415  # as above

    folder = open_folder(trained.model)
    trusts = folder.trust_remote_code
    anatomy = checked(folder.config, trust_remote_code=trusts).anatomy
    found = cut(folder.config, (), anatomy, trust_remote_code=trusts)
    said = {name: value for name, value in folder.said.items() if name not in {"torch_dtype", "transformers_weights"}}
    return Target(
        model=found.model,
        config={"architectures": [type(found.model).__name__], **said},
        full=found.names.full,
        files=tuple(sorted(filter(_is_copied, folder.path.iterdir()))),
        base_path=str(folder.path),
    )


def _is_copied(file: Path) -> bool:
    if not file.is_file() or file.name in _NOT_COPIED or file.name.endswith(".index.json"):
        return False
    return file.suffix in _COPIED or file.name.startswith(_ALWAYS_COPIED)


def _made(config: dict[str, Any], **more: Any) -> Target:
    from transformers import AutoConfig  # noqa: PLC0415  # as above

    from pipelinejob_trainer.models.huggingface.find import skeleton  # noqa: PLC0415  # as above

    kind = config["model_type"]
    model = skeleton(AutoConfig.for_model(kind, **{key: each for key, each in config.items() if key != "model_type"}))
    return Target(model=model, config={"architectures": [type(model).__name__], **config}, **more)
