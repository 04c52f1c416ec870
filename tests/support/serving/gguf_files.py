"""Tiny GGUF files for tests, of random numbers under llama.cpp's names; some matrices are codes of 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH, BLOCKS = 64, 4
_COMMON = {
    "vocab_size": 96,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": 96, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4}  # a file has no n_positions: 1,024
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768, "head_dim": 16}
# What each family is called there, and its sizes as transformers has them.
FAMILIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", _COMMON),
    "qwen2": ("qwen2", _COMMON | {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", GPT2),
    "gemma2": ("gemma2", _COMMON | {"head_dim": 16}),
    "qwen3_moe": ("qwen3moe", _COMMON | EXPERTS),
}
LETTERS = [chr(each) for each in range(ord("!"), ord("~"))]


def write_gguf(to: Path, family: str, *, architecture: str | None = None, tokens: bool = False) -> Path:
    """Write a file of a family; return its path."""
    import gguf
    import numpy as np
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    named, sizes = FAMILIES[family]
    config = AutoConfig.for_model(family, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    names = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(named, TensorProcessor)(config=config.to_dict()))
    shapes = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    writer = gguf.GGUFWriter(to, architecture or named)
    _describe(writer, config, family, named)
    if tokens:
        _write_tokens(writer)
    draw = np.random.default_rng(7)
    for name, full in sorted(names.items()):
        if full not in shapes or (config.tie_word_embeddings and name.startswith("output.")):
            continue
        shape, stored = shapes[full], name
        if "_exps" in name:
            gate_or_up = "down" not in name
            shape = (shape[0], shape[1] // 2, shape[2]) if gate_or_up else shape
            stored = name if name.endswith(".weight") else f"{name}.weight"
        elif family == "gpt2" and len(shape) == 2 and "blk" in name:
            shape = shape[::-1]  # transformers keeps these turned
        values = draw.standard_normal(shape, dtype=np.float32) * 0.2
        kind = _kind(gguf, stored, shape)
        if kind is None:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def _kind(gguf: Any, name: str, shape: tuple[int, ...]) -> Any:
    """Return a matrix's quantisation; None for what is stored as it is."""
    if len(shape) < 2 or shape[-1] % 32:
        return None
    kinds = gguf.GGMLQuantizationType
    return kinds.Q4_0 if "ffn" in name else kinds.Q8_0 if "attn" in name else kinds.F16


def _describe(writer: Any, config: Any, family: str, named: str) -> None:
    writer.add_name(f"tiny {named}")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(4)
    if family == "gpt2":
        writer.add_feed_forward_length(4 * WIDTH)
        writer.add_layer_norm_eps(1e-5)
        writer.add_token_list([f"t{each}" for each in range(96)])
        return
    writer.add_vocab_size(96)
    writer.add_feed_forward_length(96)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_key_length(16)
    if family == "qwen3_moe":
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)


def _write_tokens(writer: Any) -> None:
    """Write a tokenizer of letters, whose first token ends a text."""
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<end>", "\u0120", *LETTERS, "he"])
    writer.add_token_types([3] + [1] * 95)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
