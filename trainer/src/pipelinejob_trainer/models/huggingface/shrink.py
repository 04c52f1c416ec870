"""The same model with few hidden units: a config whose numbers keep their relations to one another.

Heads become a few, and every width is divided by what the hidden size is divided by, so that what
divided before divides after, and sums stay sums. Layers become as few as show every kind of block.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pipelinejob_trainer.models.huggingface.find import find_blocks, num_blocks, skeleton

VOCABULARY = 96
WINDOW = 4
_HEADS = 4
_EXPERTS = 8  # or a multiple of those who divide them
_LEAST_LAYERS = 3
_IS_OWN_NUMBER = re.compile(r"idx|index|layer_?id|seed")

_WIDE = 32  # a number from here on is a width, where its name says nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """What numbers become: `old` blocks `layers`, heads `fewer` times fewer and each `by` times narrower than `head`.

    `tensor` ranks can share every width, and `expert` replicas the experts.
    """

    old: int
    layers: int
    head: int
    by: int
    fewer: int
    tensor: int = 1
    expert: int = 1

    def experts(self, value: int) -> int:
        return min(value, self.expert * max(1, _EXPERTS // self.expert))

    def heads(self, value: int) -> int:
        return max(1, value // self.fewer)

    def head_width(self, value: int) -> int:
        return max(value // self.by, 2) if value % self.by == 0 else value

    def of_head(self, count: int) -> int:
        """Return how many entries are left of a list with one for every so many elements of a head."""
        return max(1, count * self.head_width(self.head) // self.head)

    def width(self, value: int) -> int:
        by = self.by * self.fewer
        exact, rest = divmod(value, by)
        least = 8 * self.tensor
        is_shareable = self.tensor == 1 or exact % (4 * self.tensor) == 0  # parts' rows are multiples of 16 bytes
        return max(least, exact) if rest == 0 and is_shareable else max(least, -(-exact // least) * least)

    def aligned(self, value: int) -> int:
        """Return a width whose rows are multiples of 16 bytes, which products of all experts at once want."""
        return -(-self.width(value) // (8 * self.tensor)) * 8 * self.tensor

    def blocks(self, value: int) -> int:
        return self.layers if value == self.old else min(value, self.layers)


def _at_most(limit: int) -> Callable[[_Scale, int], int]:
    return lambda _, value: min(value, limit)


def _as_it_is(_: _Scale, value: int) -> int:
    return value


_Rule = tuple[re.Pattern[str], Callable[[_Scale, int], int]]
_CHANCES = r"dropout|drop_rate|drop_path|pdrop|_drop$|jitter|layerdrop|layer_drop|noise"
_COUNTED_OTHERWISE = (
    r"max_(position|seq|sequence)|n_positions|max_target_positions|^n_ctx$|context_length|"
    r"layers?$|n_layer|conv|kernel|stride|groups?$|version|seed|steps|interval|freq|period|offset|patch|"
    r"image_size|channels$|tp$|degree|beam|length|num_labels|bits|axis|theta|rope|type_vocab|expand|depth$|"
    r"num_codebooks|num_residual|multiple_of|every|index$|position|iters|start|ratio|num_memory|truncate"
)
_RULES: tuple[_Rule, ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (_CHANCES, lambda _, __: 0),
        (r"^(num_hidden_layers|n_layers?|num_layers|decoder_layers)$", _Scale.blocks),
        (r"token_id$|_token_index$|_id$", lambda _, value: value if value < VOCABULARY else 1),
        (r"vocab_size", _at_most(VOCABULARY)),
        (r"topk_groups?$|top_k_groups?$|limited_groups?$", _at_most(1)),
        (r"^n_group$|num_expert_groups?$|moe_n_group|^num_groups$|moe_num_group|n_expert_groups", _at_most(2)),
        (r"experts_per_tok|num_selected_experts|moe_topk|top_k|num_experts_per_token|moe_k$", _at_most(2)),
        (r"^(num_|n_)?(local_|routed_|moe_)*(num_)?experts$", _Scale.experts),
        (r"^(num_blocks|n_blocks)$", _Scale.blocks),
        (r"moe_intermediate|expert_intermediate|moe_ffn", _Scale.aligned),
        (r"window(_size)?$|chunk_size$|attention_window|local_attention$", _at_most(WINDOW)),
        (
            r"head_?dim|d_kv|kv_channels|lora_rank|_lora_dim|rotary_dim|low_rank_dim|d_head|head_size|index_head",
            _Scale.head_width,
        ),
        (r"(^|_)(n_?head|heads?)(s|$|_kv$)|num_heads|n_heads|num_kv_heads|^n_head", _Scale.heads),
        (_COUNTED_OTHERWISE, _as_it_is),
        (r"", lambda scale, value: value if value < _WIDE else scale.width(value)),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a small version has: so many heads, of about such a width."""

    heads: int
    head_width: int


_LIKELIEST_FIRST = (
    Sizes(heads=_HEADS, head_width=8),
    Sizes(heads=_HEADS, head_width=16),
    Sizes(heads=2, head_width=32),
    Sizes(heads=8, head_width=8),
)


def shrunk(config: Any, *, trust_remote_code: bool = False) -> Iterator[tuple[Sizes, Any]]:
    """Return small versions of a config, the likeliest to be built first."""
    kinds = kinds_of(config, trust_remote_code=trust_remote_code)
    layers = _few(kinds)
    for sizes in _LIKELIEST_FIRST:
        yield sizes, _small(config, sizes, layers=layers)


def narrowed(config: Any, sizes: Sizes, *, tensor: int = 1, expert: int = 1) -> Any:
    """Return a small version of a config that has all of its layers, which so many ranks can share."""
    if tensor > 1:
        sizes = _shareable(config.get_text_config(), sizes, tensor)
    return _small(config, sizes, layers=num_blocks(config), tensor=tensor, expert=expert)


def _shareable(text: Any, sizes: Sizes, tensor: int) -> Sizes:
    """Return sizes with so many heads that ranks can share them, and those of keys and values, if there are any."""
    if getattr(text, "is_heterogeneous", False):
        return sizes  # no such model is divided
    heads, keys = (_number(text, f"num_{each}_heads") for each in ("attention", "key_value"))
    fewer = [by for by in range(1, heads + 1) if heads % by == 0 and heads // by >= sizes.heads]
    kept = [heads // by for by in fewer if all(max(1, each // by) % tensor == 0 for each in (heads, keys or heads))]
    return replace(sizes, heads=min(kept)) if kept else sizes


def kinds_of(config: Any, *, trust_remote_code: bool = False) -> list[str]:
    """Return each block's kind: what it is made of, and what its plain attributes say, but no sizes."""
    model = skeleton(config, trust_remote_code=trust_remote_code)
    return [_kind(block) for block in find_blocks(model, config).modules]


def _kind(block: nn.Module) -> str:
    described = []
    for name, module in block.named_modules():
        plain = {key: _said(value) for key, value in vars(module).items() if not _IS_OWN_NUMBER.search(key)}
        described.append(f"{name}:{type(module).__name__}:{sorted(plain.items())}")
    return ";".join(described)


def _said(value: object) -> str:
    """Return what an attribute says of a block's kind: of a number only whether there is one."""
    if isinstance(value, (bool, str)) or value is None:
        return repr(value)
    return str(bool(value)) if isinstance(value, int) else ""


def _few(kinds: Sequence[str]) -> int:
    """Return how many of the first layers show every kind that there is."""
    wanted = set(kinds)
    first = next(count for count in range(1, len(kinds) + 1) if set(kinds[:count]) == wanted)
    return min(len(kinds), max(_LEAST_LAYERS, first))


def _small(config: Any, sizes: Sizes, *, layers: int, tensor: int = 1, expert: int = 1) -> Any:
    small = copy.deepcopy(config)
    old = num_blocks(config)
    for part in _parts(small):
        _shrink(part, sizes, old=old, layers=layers, tensor=tensor, expert=expert)
    return small


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for key in getattr(config, "sub_configs", {}):
        inner = getattr(config, key, None)
        if inner is not None and not isinstance(inner, dict):
            yield from _parts(inner)


def _shrink(config: Any, sizes: Sizes, *, old: int, layers: int, tensor: int, expert: int) -> None:
    """Shrink one config's own numbers in place."""
    of_layers = _taken_off(config)
    hidden = _number(config, "hidden_size")
    old_heads = _number(config, "num_attention_heads") or _number(config, "num_heads")
    width = _number(config, "head_dim") or (hidden // old_heads if old_heads else hidden // _HEADS)
    scale = _Scale(
        old=old,
        layers=layers,
        head=width,
        by=max(1, width // sizes.head_width),
        fewer=max(1, old_heads // sizes.heads),
        tensor=tensor,
        expert=expert,
    )
    for key, value in dict(vars(config)).items():
        new = value if key.startswith("_") else _shrunk_value(key, value, scale)
        if new is not value:
            setattr(config, key, new)
    left = {index: own for index, own in of_layers.items() if index < layers}
    if left:
        config.per_layer_config = {
            index: {key: _shrunk_value(key, value, scale) for key, value in own.items()} for index, own in left.items()
        }


def _taken_off(config: Any) -> dict[int, dict[str, Any]]:
    """Take off a config what some of its layers have of their own, and return it."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    own: dict[int, dict[str, Any]] = config._heterogeneity_spec.per_layer_overrides  # noqa: SLF001 # nothing public tells
    config.per_layer_config = None
    return own


def _shrunk_value(key: str, value: Any, scale: _Scale) -> Any:
    if isinstance(value, dict):
        return {
            name: _shrunk_value(name, each, scale) if isinstance(each, (dict, list)) else each
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return _shrunk_list(key, value, scale)
    if isinstance(value, float):
        return 0.0 if re.search(_CHANCES, key) else value
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return next(rule(scale, value) for pattern, rule in _RULES if pattern.search(key))


def _shrunk_list(key: str, value: Sequence[Any], scale: _Scale) -> Any:
    """Return the entries of the layers that are left; sections and factors of a head's width shrink as that does."""
    if re.fullmatch(r"(short|long)_factor", key):
        return _alike(value, value[: scale.of_head(len(value))])
    if len(value) == scale.old and scale.old > scale.layers:
        return _alike(value, value[: scale.layers])
    numbers = [each for each in value if isinstance(each, int) and not isinstance(each, bool)]
    if len(numbers) < len(value):
        return value
    if "section" in key:
        return _alike(value, [max(1, each // scale.by) for each in numbers])
    if re.search(r"layer|idx|ids|indices", key):
        return _alike(value, [each for each in numbers if each < scale.layers])
    return value


def _alike(value: Sequence[Any], entries: Sequence[Any]) -> Sequence[Any]:
    return tuple(entries) if isinstance(value, tuple) else list(entries)


def _number(config: Any, key: str) -> int:
    value = getattr(config, key, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
