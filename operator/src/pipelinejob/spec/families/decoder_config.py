"""Which Hugging Face configs the built-in decoder is, exactly: the same weights give the same logits.

`models/huggingface.py` reads many more, to count what their layers cost; here it must be the same
arithmetic, so whatever is not known to be is refused, with the reason.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from pipelinejob.base.errors import SpecError
from pipelinejob.models.config_fields import Fields
from pipelinejob.spec.families.decoder import GROUPED_MULTIPLE, DecoderModel

_Sizes = dict[str, Any]


class _OtherwiseError(Exception):
    """The built-in decoder cannot be this model; the text says why."""


def decoder_model_of(config: Mapping[str, Any]) -> DecoderModel | str:
    """Return the built-in decoder that a `config.json` describes, or why there is none.

    The coefficient of the load-balancing loss is not the config's: it means something else there
    (docs/models.md), so it is 0.
    """
    kind = config.get("model_type")
    reader = _READERS.get(str(kind))
    if reader is None:
        return f'model_type is "{kind}"; the built-in decoder can be {", ".join(_READERS)}'
    try:
        return DecoderModel.model_validate(_common(config) | reader(config))
    except _OtherwiseError as why:
        return str(why)
    except SpecError as error:
        return str(error)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(to_camel(str(each)) for each in first['loc'])}: {first['msg']}"


def _common(config: Mapping[str, Any]) -> _Sizes:
    fields = Fields(config)
    width = fields.size("hidden_size")
    heads = fields.heads(width)
    kind = fields.text("model_type")
    _expect(config, "hidden_act", "silu")
    _expect(config, "attention_dropout", 0)
    if width % heads and not config.get("head_dim"):
        raise _OtherwiseError(f"{heads} heads cannot share a width of {width} equally")
    key_value_heads = fields.size("num_key_value_heads", default=heads if kind == "llama" else None)
    if heads % key_value_heads:
        raise _OtherwiseError(f"{heads} heads cannot share {key_value_heads} keys and values equally")
    return {
        "num_layers": fields.blocks(),
        "hidden_size": width,
        "num_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_size": fields.size("head_dim", default=width // heads),
        "feed_forward_size": fields.size("intermediate_size"),
        "vocabulary_size": fields.size("vocab_size"),
        "tie_embeddings": fields.flag("tie_word_embeddings", default=False),
        "norm_epsilon": config.get("rms_norm_eps", 1e-5 if kind == "mixtral" else 1e-6),
        **_rope(config, theta=1_000_000.0 if kind == "mixtral" else 10_000.0),
    }


def _rope(config: Mapping[str, Any], *, theta: float) -> _Sizes:
    """Read what transformers 5 calls `rope_parameters`, and before it `rope_theta` and `rope_scaling`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    _expect(given, "partial_rotary_factor", 1)
    _expect(config, "partial_rotary_factor", 1)
    sizes: _Sizes = {"rope_theta": given.get("rope_theta", config.get("rope_theta", theta))}
    if kind == "default":
        return sizes
    if kind == "linear":
        return sizes | {"rope_scaling": {"kind": kind, "factor": given["factor"]}}
    if kind == "llama3":
        names = {
            "factor": "factor",
            "low_frequency_factor": "low_freq_factor",
            "high_frequency_factor": "high_freq_factor",
            "original_positions": "original_max_position_embeddings",
        }
        missing = [theirs for theirs in names.values() if theirs not in given]
        if missing:
            raise _OtherwiseError(f"rope_parameters lack {', '.join(missing)}")
        return sizes | {"rope_scaling": {"kind": kind, **{ours: given[theirs] for ours, theirs in names.items()}}}
    raise _OtherwiseError(f'rope_type is "{kind}"; the built-in decoder knows default, linear and llama3')


def _llama(config: Mapping[str, Any]) -> _Sizes:
    _without_biases(config)
    return {}


def _mistral(config: Mapping[str, Any]) -> _Sizes:
    if "layer_types" in config:
        _alike(config)
    return {"sliding_window": config.get("sliding_window", 4096)}


def _mixtral(config: Mapping[str, Any]) -> _Sizes:
    _expect(config, "router_jitter_noise", 0)
    sizes = {"sliding_window": config.get("sliding_window")}
    num = Fields(config).size("num_local_experts", "num_experts", default=8)
    return sizes | _experts(config, num=num, per_token=2, is_normalized=True)


def _qwen2(config: Mapping[str, Any]) -> _Sizes:
    return {"attention_bias": True, "sliding_window": _window_of_all(config)}


def _qwen3(config: Mapping[str, Any]) -> _Sizes:
    _without_biases(config)
    head_size = Fields(config).size("head_dim", default=128)
    return {"head_norms": True, "head_size": head_size, "sliding_window": _window_of_all(config)}


def _qwen3_moe(config: Mapping[str, Any]) -> _Sizes:
    _without_biases(config)
    _expect(config, "decoder_sparse_step", 1)
    if config.get("mlp_only_layers"):
        raise _OtherwiseError(f"mlp_only_layers is {config['mlp_only_layers']}: only some blocks have experts")
    fields = Fields(config)
    window = config.get("sliding_window") if fields.flag("use_sliding_window", default=False) else None
    num = fields.size("num_experts", "num_local_experts")
    is_normalized = fields.flag("norm_topk_prob", default=False)
    return {
        "head_norms": True,
        "sliding_window": window,
        "feed_forward_size": fields.size("moe_intermediate_size"),
        **_experts(config, num=num, per_token=8, is_normalized=is_normalized),
    }


_READERS: Mapping[str, Callable[[Mapping[str, Any]], _Sizes]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}


def _experts(config: Mapping[str, Any], *, num: int, per_token: int, is_normalized: bool) -> _Sizes:
    fields = Fields(config)
    used = fields.size("num_experts_per_tok", default=per_token, most=num)
    for name in ("hidden_size", "moe_intermediate_size", "intermediate_size"):
        if (size := config.get(name)) and size % GROUPED_MULTIPLE:
            raise _OtherwiseError(f"{name} is {size}; with experts it must be a multiple of {GROUPED_MULTIPLE}")
    return {"experts": {"num": num, "per_token": used, "normalized": is_normalized, "auxiliary_loss": 0.0}}


def _window_of_all(config: Mapping[str, Any]) -> int | None:
    """Read qwen's window, which blocks from `max_window_layers` on have."""
    if not Fields(config).flag("use_sliding_window", default=False):
        return None
    window: int | None = config.get("sliding_window", 4096)
    if config.get("layer_types") is not None:
        return window if _alike(config) == "sliding_attention" else None
    first, blocks = config.get("max_window_layers", 28), config["num_hidden_layers"]
    if 0 < first < blocks:
        raise _OtherwiseError(f"max_window_layers is {first} of {blocks}: only some blocks have a sliding window")
    return window if first == 0 else None


def _alike(config: Mapping[str, Any]) -> str:
    kinds = sorted(set(config["layer_types"]))
    if len(kinds) != 1:
        raise _OtherwiseError(f"layer_types are {' and '.join(kinds)}: only some blocks have a sliding window")
    return str(kinds[0])


def _without_biases(config: Mapping[str, Any]) -> None:
    """Refuse biases of all projections; the built-in decoder has them for queries, keys and values only."""
    _expect(config, "attention_bias", expected=False)
    _expect(config, "mlp_bias", expected=False)


def _expect(config: Mapping[str, Any], name: str, expected: object) -> None:
    value = config.get(name)
    if value is not None and value != expected:
        raise _OtherwiseError(f"{name} is {value}; the built-in decoder has {expected}")
