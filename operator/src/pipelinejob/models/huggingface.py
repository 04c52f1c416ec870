"""A Hugging Face `config.json`, read as the sizes of a decoder.

Each family's reader says what its modelling code in `transformers` makes of the fields. Defaults
are those of its configuration class, because a file may leave out what equals them. A model type
that is not known, but has a llama's fields, is read as a llama, with a note.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from pipelinejob.models.branches import (
    attention,
    biased_block,
    equal_attention,
    experts,
    feed_forward,
    latent_attention,
    normed_after,
    parallel_block,
)
from pipelinejob.models.config_fields import Fields
from pipelinejob.models.decoder import Block, Branch, Decoder

_Inner = Callable[[Fields, int, int], Branch]  # the feed-forward branch of a block, by its index and its norms' vectors


def decoder_of_config(config: Mapping[str, Any]) -> Decoder:
    """Read the sizes.

    Raises SpecError naming the field that is missing, or is no size.
    """
    return _decoder_of_text(json.dumps(config, default=str))  # a search asks a thousand times


@lru_cache(maxsize=64)
def _decoder_of_text(config: str) -> Decoder:
    decoder = read_decoder(json.loads(config))
    alike: dict[Block, Block] = {}  # equal blocks are one object, and need not be compared again
    return replace(decoder, blocks=tuple(alike.setdefault(block, block) for block in decoder.blocks))


def read_decoder(config: Mapping[str, Any]) -> Decoder:
    """Read the sizes anew, as `decoder_of_config` does once for each config."""
    fields = Fields(text_part(config))
    kind = fields.text("model_type")
    if kind in _FAMILIES:
        return _FAMILIES[kind](fields)
    named = f'"{kind}"' if kind else "without a name"
    return _llama(fields, note=f"the model type is {named}; its layers were counted as those of a llama of this size")


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a model of images and text says of its decoder."""
    text = config.get("text_config")
    if "hidden_size" in config or not isinstance(text, Mapping):
        return config
    return {"model_type": config.get("model_type"), **text}


def _llama(
    fields: Fields,
    *,
    has_query_bias: bool = False,
    has_head_norms: bool = False,
    is_tied: bool = False,
    head_size: int | None = None,
    is_normed_after: bool = False,
    window: Callable[[Fields, int], int | None] | None = None,
    inner: _Inner | None = None,
    note: str | None = None,
) -> Decoder:
    """Read RMS norms, rotary positions, grouped queries and a gated feed-forward layer.

    Touvron et al. 2023 (arXiv 2302.13971) and 2307.09288. Most families since are this but for a
    detail.
    """
    width = fields.size("hidden_size")
    heads = fields.heads(width)
    has_bias = fields.flag("attention_bias", default=False)

    def block(index: int) -> Block:
        attending = attention(
            width,
            heads=heads,
            kv_heads=fields.size("num_key_value_heads", default=heads, most=heads),
            head_size=fields.size("head_dim", default=head_size or max(1, width // heads)),
            has_bias=has_bias or has_query_bias,
            has_output_bias=has_bias,
            has_head_norms=has_head_norms,
            vectors=width,
            window=window(fields, index) if window else None,
        )
        branches = attending, (inner or _gated)(fields, index, width)
        return tuple(normed_after(branch, width) for branch in branches) if is_normed_after else branches

    return Decoder(
        width=width,
        token_width=width,
        vocabulary=fields.size("vocab_size"),
        blocks=tuple(map(block, range(fields.blocks()))),
        head_vectors=width,
        is_tied=fields.flag("tie_word_embeddings", default=is_tied),
        note=note,
    )


def _gated(fields: Fields, _index: int, vectors: int) -> Branch:
    return feed_forward(
        fields.size("hidden_size"),
        fields.size("intermediate_size"),
        is_gated=True,
        has_bias=fields.flag("mlp_bias", default=False),
        vectors=vectors,
    )


def _mixtral_experts(fields: Fields, _index: int, vectors: int) -> Branch:
    num = fields.size("num_local_experts", default=8)
    return experts(
        fields.size("hidden_size"),
        fields.size("intermediate_size"),
        num=num,
        used=fields.size("num_experts_per_tok", default=2, most=num),
        vectors=vectors,
    )


def _qwen_experts(fields: Fields, index: int, vectors: int, *, has_shared: bool) -> Branch:
    """Read the experts of qwen2_moe, with a gated one that sees all, and of qwen3_moe.

    Some blocks may have none.
    """
    step = fields.size("decoder_sparse_step", default=1)
    if index in fields.items("mlp_only_layers") or (index + 1) % step:
        return _gated(fields, index, vectors)
    num = fields.size("num_experts")
    return experts(
        fields.size("hidden_size"),
        fields.size("moe_intermediate_size"),
        num=num,
        used=fields.size("num_experts_per_tok", most=num),
        shared=fields.size("shared_expert_intermediate_size", default=0, least=0) if has_shared else 0,
        has_shared_gate=has_shared,
        vectors=vectors,
    )


def _deepseek_experts(fields: Fields, index: int, vectors: int, *, has_bias: bool) -> Branch:
    """Read DeepSeekMoE (arXiv 2401.06066): dense blocks first, then many small experts, of which some see all tokens.

    V3 steers its router by a bias of each expert.
    """
    first = fields.size("first_k_dense_replace", default=0, least=0)
    if index < first or index % fields.size("moe_layer_freq", default=1):
        return _gated(fields, index, vectors)
    num, inner = fields.size("n_routed_experts"), fields.size("moe_intermediate_size")
    return experts(
        fields.size("hidden_size"),
        inner,
        num=num,
        used=fields.size("num_experts_per_tok", most=num),
        shared=inner * fields.size("n_shared_experts", default=0, least=0),
        vectors=vectors + num * has_bias,
    )


def _deepseek(fields: Fields, *, has_router_bias: bool) -> Decoder:
    width = fields.size("hidden_size")
    attending = latent_attention(
        width,
        heads=fields.size("num_attention_heads"),
        query_rank=fields.optional("q_lora_rank"),
        kv_rank=fields.size("kv_lora_rank"),
        plain_size=fields.size("qk_nope_head_dim"),
        rotary_size=fields.size("qk_rope_head_dim"),
        value_size=fields.size("v_head_dim"),
        has_bias=fields.flag("attention_bias", default=False),
        vectors=width,
    )
    inner = partial(_deepseek_experts, has_bias=has_router_bias) if fields.optional("n_routed_experts") else _gated
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=fields.size("vocab_size"),
        blocks=tuple((attending, inner(fields, index, width)) for index in range(fields.blocks())),
        head_vectors=width,
        is_tied=fields.flag("tie_word_embeddings", default=False),
        note="predicts one token ahead; the layers for more (num_nextn_predict_layers) are not counted"
        if fields.is_positive("num_nextn_predict_layers")
        else None,
    )


def _always(fields: Fields, _index: int) -> int | None:
    return fields.optional("sliding_window")


def _if_asked(fields: Fields, index: int) -> int | None:
    """Read qwen's window, which the blocks before `max_window_layers` don't have."""
    is_asked = fields.flag("use_sliding_window", default=False)
    return (
        fields.optional("sliding_window") if is_asked and index >= (fields.optional("max_window_layers") or 0) else None
    )


def _now_and_then(fields: Fields, index: int, *, period: int) -> int | None:
    """Read gemma's window: every so many blocks one looks at everything."""
    kinds = fields.items("layer_types")
    is_full = (index + 1) % period == 0 if index >= len(kinds) else kinds[index] == "full_attention"
    return None if is_full else fields.optional("sliding_window")


def _gpt2(fields: Fields) -> Decoder:
    """Read learned positions, layer norms, biases everywhere, GELU (Radford et al. 2019)."""
    width = fields.size("n_embd", "hidden_size")
    inner = fields.size("n_inner", default=4 * width)
    block = biased_block(width, heads=fields.heads(width, "n_head", "num_attention_heads"), inner=inner)
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=fields.size("vocab_size"),
        positions=fields.size("n_positions", "max_position_embeddings"),
        blocks=(block,) * fields.blocks("n_layer", "num_hidden_layers"),
        head_vectors=2 * width,
        is_tied=fields.flag("tie_word_embeddings", default=True),
        has_dropout=fields.is_positive("resid_pdrop"),
    )


def _gpt_neox(fields: Fields) -> Decoder:
    """Read attention and feed-forward layer side by side, each with a norm of its own (Black et al. 2022)."""
    width = fields.size("hidden_size")
    heads = fields.heads(width)
    has_bias = fields.flag("attention_bias", default=True)
    attending = equal_attention(width, heads=heads, has_bias=has_bias)
    inner = feed_forward(width, fields.size("intermediate_size"), is_gated=False, has_bias=True, vectors=2 * width)
    is_parallel = fields.flag("use_parallel_residual", default=True)
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=fields.size("vocab_size"),
        blocks=(parallel_block(attending, inner, norms=2) if is_parallel else (attending, inner),) * fields.blocks(),
        head_vectors=2 * width,
        is_tied=fields.flag("tie_word_embeddings", default=False),
        has_dropout=fields.is_positive("hidden_dropout"),
    )


def _phi(fields: Fields) -> Decoder:
    """Read attention and feed-forward layer side by side under one norm, biases everywhere, the head's too."""
    width = fields.size("hidden_size")
    heads = fields.heads(width)
    head_size = width // heads
    has_head_norms = fields.flag("qk_layernorm", default=False)
    attending = attention(
        width,
        heads=heads,
        kv_heads=fields.size("num_key_value_heads", default=heads, most=heads),
        head_size=head_size,
        has_bias=True,
        has_output_bias=True,
        has_head_norms=has_head_norms,
        vectors=2 * width + 2 * head_size * has_head_norms,  # theirs are layer norms, with a bias each
    )
    inner = feed_forward(width, fields.size("intermediate_size"), is_gated=False, has_bias=True, vectors=0)
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=fields.size("vocab_size"),
        blocks=(parallel_block(attending, inner),) * fields.blocks(),
        head_vectors=2 * width,
        has_head_bias=True,
        is_tied=fields.flag("tie_word_embeddings", default=False),
        has_dropout=fields.is_positive("resid_pdrop"),
    )


def _opt(fields: Fields) -> Decoder:
    """Read a GPT-2 with two positions more than it uses, and tokens of a width of their own (Zhang et al. 2022)."""
    width = fields.size("hidden_size")
    has_bias = fields.flag("enable_bias", default=True)
    block = biased_block(width, heads=fields.heads(width), inner=fields.size("ffn_dim"), has_bias=has_bias)
    is_normed_first = fields.flag("do_layer_norm_before", default=True)
    return Decoder(
        width=width,
        token_width=fields.size("word_embed_proj_dim", default=width),
        vocabulary=fields.size("vocab_size"),
        positions=fields.size("max_position_embeddings") + 2,
        blocks=(block,) * fields.blocks(),
        head_vectors=2 * width if is_normed_first else 0,
        is_tied=fields.flag("tie_word_embeddings", default=True),
        has_dropout=fields.is_positive("dropout"),
    )


def _bloom(fields: Fields) -> Decoder:
    """Read a GPT-2 whose positions are slopes of attention, and whose embedding is normed (Le Scao et al. 2022)."""
    width = fields.size("hidden_size", "n_embed")
    block = biased_block(width, heads=fields.heads(width, "n_head", "num_attention_heads"), inner=4 * width)
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=fields.size("vocab_size"),
        embedding_vectors=2 * width,
        blocks=(block,) * fields.blocks("n_layer", "num_hidden_layers"),
        head_vectors=2 * width,
        is_tied=fields.flag("tie_word_embeddings", default=True),
        has_dropout=fields.is_positive("hidden_dropout"),
    )


def _falcon(fields: Fields) -> Decoder:
    """Read one key and value for all queries, or groups.

    Branches side by side but in the oldest (Almazrouei 2023).
    """
    width = fields.size("hidden_size")
    heads = fields.heads(width, "num_attention_heads", "n_head")
    is_new = fields.flag("new_decoder_architecture", default=False)
    has_bias = fields.flag("bias", default=False)
    is_shared = fields.flag("multi_query", default=True)
    num_norms = fields.size("num_ln_in_parallel_attn", default=2, most=2) if is_new else 1
    kv_heads = fields.size("num_kv_heads", default=heads) if is_new else 1 if is_shared else heads
    attending = equal_attention(width, heads=heads, kv_heads=kv_heads, has_bias=has_bias)
    is_parallel = is_new or fields.flag("parallel_attn", default=True)
    inner = feed_forward(
        width,
        fields.size("ffn_hidden_size", default=4 * width),
        is_gated=False,
        has_bias=has_bias,
        vectors=2 * width if not is_parallel or num_norms > 1 else 0,
    )
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=fields.size("vocab_size"),
        blocks=(parallel_block(attending, inner, norms=num_norms) if is_parallel else (attending, inner),)
        * fields.blocks("num_hidden_layers", "n_layer"),
        head_vectors=2 * width,
        is_tied=fields.flag("tie_word_embeddings", default=True),
        has_dropout=fields.is_positive("hidden_dropout"),
    )


_FAMILIES: Mapping[str, Callable[[Fields], Decoder]] = {
    "llama": _llama,
    "mistral": partial(_llama, window=_always),
    "mixtral": partial(_llama, window=_always, inner=_mixtral_experts),
    "qwen2": partial(_llama, has_query_bias=True, window=_if_asked),
    "qwen2_moe": partial(_llama, has_query_bias=True, window=_if_asked, inner=partial(_qwen_experts, has_shared=True)),
    "qwen3": partial(_llama, has_head_norms=True, head_size=128, window=_if_asked),
    "qwen3_moe": partial(_llama, has_head_norms=True, window=_if_asked, inner=partial(_qwen_experts, has_shared=False)),
    "phi3": partial(_llama, window=_always),
    "gemma": partial(_llama, is_tied=True, head_size=256),
    "gemma2": partial(
        _llama, is_tied=True, head_size=256, is_normed_after=True, window=partial(_now_and_then, period=2)
    ),
    "gemma3_text": partial(
        _llama,
        is_tied=True,
        head_size=256,
        is_normed_after=True,
        has_head_norms=True,
        window=partial(_now_and_then, period=6),
    ),
    "deepseek_v2": partial(_deepseek, has_router_bias=False),
    "deepseek_v3": partial(_deepseek, has_router_bias=True),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "phi": _phi,
    "opt": _opt,
    "bloom": _bloom,
    "falcon": _falcon,
}
