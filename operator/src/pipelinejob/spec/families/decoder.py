"""The built-in decoder: Llama and its relatives by their sizes, dense or a mixture of experts."""

from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Self

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.models.branches import attention, experts, feed_forward
from pipelinejob.models.decoder import Decoder
from pipelinejob.spec.families.family import BYTE_VALUES, BuiltIn
from pipelinejob.spec.rules import Rule, ruled

GROUPED_MULTIPLE = 8  # products of all experts at once need rows of whole 16 bytes: 8 elements of bf16
_HEADS_FIT = "has(self.headSize) || self.hiddenSize % self.numHeads == 0"
_HEAD_SIZE = "(has(self.headSize) ? self.headSize : self.hiddenSize / self.numHeads)"


class RopeScalingKind(StrEnum):
    """How positions are scaled for sequences longer than those of pre-training."""

    LINEAR = "linear"
    LLAMA3 = "llama3"


class RopeScaling(Value):
    """Rotary positions for longer sequences than the model was first trained on.

    `linear` divides every position by `factor` (Chen et al. 2023, arXiv 2306.15595); `llama3` only
    what turns slowly, as Llama 3.1 does (arXiv 2407.21783).
    """

    model_config = ruled(
        Rule(
            rule="self.lowFrequencyFactor < self.highFrequencyFactor",
            message="lowFrequencyFactor must be less than highFrequencyFactor: between the two the scaling fades in",
            field=".lowFrequencyFactor",
        ),
    )

    kind: Annotated[RopeScalingKind, Field(description="`linear`, or `llama3`.")]
    factor: Annotated[float, Field(ge=1, le=1024, description="How many times longer sequences may become.")]
    low_frequency_factor: Annotated[
        float, Field(gt=0, le=1024, description="llama3: scaled in full below so many turns in originalPositions.")
    ] = 1.0
    high_frequency_factor: Annotated[
        float, Field(gt=0, le=1024, description="llama3: not scaled above so many turns in originalPositions.")
    ] = 4.0
    original_positions: Annotated[
        int, Field(ge=1, le=1_048_576, description="llama3: the longest sequence of pre-training.")
    ] = 8192


class Experts(Value):
    """A mixture of experts in place of each feed-forward layer (Mixtral, arXiv 2401.04088)."""

    model_config = ruled(
        Rule(
            rule="self.perToken <= self.num",
            message="perToken must be at most num: a token meets each expert once",
            says="a token cannot meet %d of %d experts; use at most %d",
            values=("self.perToken", "self.num", "self.num"),
            field=".perToken",
        ),
    )

    num: Annotated[int, Field(ge=2, le=1024, description="Experts in each block.")]
    per_token: Annotated[int, Field(ge=1, le=64, description="Experts that a token is sent to.")] = 2
    normalized: Annotated[
        bool, Field(description="A token's weights of the experts that it is sent to add up to 1.")
    ] = True
    auxiliary_loss: Annotated[
        float,
        Field(ge=0, le=100, description="Coefficient of each block's loss that balances its experts; 0 for none."),
    ] = 0.01


class DecoderModel(BuiltIn):
    """A decoder-only transformer in the style of Llama, by its sizes; bytes are its tokens."""

    model_config = ruled(
        Rule(
            rule=_HEADS_FIT,
            message="hiddenSize must be a multiple of numHeads where headSize is not given",
            says="%d cannot be cut into %d equal heads; use a multiple of %d, or give headSize",
            values=("self.hiddenSize", "self.numHeads", "self.numHeads"),
            field=".hiddenSize",
        ),
        Rule(
            rule=f"!({_HEADS_FIT}) || {_HEAD_SIZE} % 2 == 0",
            message="a head's size must be even, for rotary positions turn pairs; give an even headSize",
            says="heads of %d are odd, but rotary positions turn pairs; give an even headSize",
            values=(_HEAD_SIZE,),
            field=".headSize",
        ),
        Rule(
            rule="!has(self.numKeyValueHeads) || self.numHeads % self.numKeyValueHeads == 0",
            message="numHeads must be a multiple of numKeyValueHeads, so that groups are equal",
            says="%d heads cannot share %d keys and values equally; use a divisor of %d",
            values=("self.numHeads", "self.numKeyValueHeads", "self.numHeads"),
            field=".numKeyValueHeads",
        ),
        *(
            Rule(
                rule=f"!has(self.experts) || self.{field} % {GROUPED_MULTIPLE} == 0",
                message=f"{field} must be a multiple of {GROUPED_MULTIPLE} with experts, whose products are grouped",
                says=f"%d is no multiple of {GROUPED_MULTIPLE}, which the grouped products of experts need",
                values=(f"self.{field}",),
                field=f".{field}",
            )
            for field in ("hiddenSize", "feedForwardSize")
        ),
    )

    num_layers: Annotated[int, Field(ge=1, le=1024, description="Number of transformer blocks.")]
    hidden_size: Annotated[int, Field(ge=8, le=65536, description="Width of the residual stream.")]
    num_heads: Annotated[int, Field(ge=1, le=1024, description="Heads of queries in each block.")]
    num_key_value_heads: Annotated[
        int | None,
        Field(ge=1, le=1024, description="Heads of keys and values, shared by groups of queries; numHeads if unset."),
    ] = None
    head_size: Annotated[
        int | None, Field(ge=2, le=1024, description="Width of a head; hiddenSize / numHeads if unset.")
    ] = None
    feed_forward_size: Annotated[
        int, Field(ge=8, le=262144, description="Width of the gated feed-forward layer, or of each expert.")
    ]
    vocabulary_size: Annotated[
        int, Field(ge=2, le=1_000_000, description="Number of tokens; 256 for bytes, more to pad it.")
    ] = BYTE_VALUES
    tie_embeddings: Annotated[
        bool, Field(description="The head multiplies with the embedding's table instead of one of its own.")
    ] = False
    rope_theta: Annotated[float, Field(ge=1, le=1e12, description="Base of the rotary positions' wavelengths.")] = (
        10_000.0
    )
    rope_scaling: Annotated[
        RopeScaling | None, Field(description="Rotary positions for longer sequences than those of pre-training.")
    ] = None
    norm_epsilon: Annotated[
        float, Field(gt=0, le=1, description="Added to the mean square that a norm divides by the root of.")
    ] = 1e-5
    attention_bias: Annotated[
        bool, Field(description="Queries, keys and values have biases, as in Qwen2; what heads give has none.")
    ] = False
    head_norms: Annotated[bool, Field(description="Each head's queries and keys are normed, as in Qwen3.")] = False
    sliding_window: Annotated[
        int | None, Field(ge=1, le=1_048_576, description="Tokens that each looks back at, itself among them.")
    ] = None
    experts: Annotated[
        Experts | None, Field(description="A mixture of experts in place of each feed-forward layer.")
    ] = None

    layers_cel = "numLayers + 2"

    @property
    def key_value_heads(self) -> int:
        """The heads of keys and values."""
        return self.num_key_value_heads or self.num_heads

    @property
    def width_of_head(self) -> int:
        """The width of a head."""
        return self.head_size or self.hidden_size // self.num_heads

    def decoder(self, sequence_length: int) -> Decoder:  # noqa: ARG002 # nothing is learned of positions
        return _decoder(self)

    def shrunk(self) -> Self:
        groups = {1: 1, self.num_heads: 4}  # one key for all, or one each; else groups
        experts = self.experts
        sizes = {
            "hidden_size": 16,
            "num_heads": 4,
            "num_key_value_heads": groups.get(self.key_value_heads, 2),
            "head_size": 4,
            "feed_forward_size": 32,
            "vocabulary_size": BYTE_VALUES,
            "sliding_window": min(self.sliding_window, 8) if self.sliding_window else None,
            "experts": experts and experts.model_copy(update=_few_experts(experts)),
        }
        return self.model_copy(update=sizes)

    def shrunk_to_share(self, tensor: int) -> Self:
        small = self.shrunk()
        sizes = ("hidden_size", "num_heads", "num_key_value_heads", "feed_forward_size")
        return small.model_copy(update={name: tensor * getattr(small, name) for name in sizes})

    def with_experts_for(self, replicas: int) -> Self:
        if self.experts is None or self.experts.num % replicas == 0:
            return self
        num = -(-self.experts.num // replicas) * replicas
        return self.model_copy(update={"experts": self.experts.model_copy(update={"num": num})})


def _few_experts(experts: Experts) -> dict[str, int]:
    num = min(experts.num, 8)
    return {"num": num, "per_token": min(experts.per_token, num - 1 if experts.per_token < experts.num else num)}


@lru_cache(maxsize=64)  # so that the same sizes are the same decoder
def _decoder(model: DecoderModel) -> Decoder:
    """Return the sizes of Llama's layers (Touvron et al. 2023, arXiv 2302.13971), norms without a bias."""
    width = model.hidden_size
    attending = attention(
        width,
        heads=model.num_heads,
        kv_heads=model.key_value_heads,
        head_size=model.width_of_head,
        has_bias=model.attention_bias,
        has_head_norms=model.head_norms,
        vectors=width,
        window=model.sliding_window,
    )
    inner = (
        feed_forward(width, model.feed_forward_size, is_gated=True, vectors=width)
        if model.experts is None
        else experts(width, model.feed_forward_size, num=model.experts.num, used=model.experts.per_token, vectors=width)
    )
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=model.vocabulary_size,
        blocks=((attending, inner),) * model.num_layers,
        head_vectors=width,
        is_tied=model.tie_embeddings,
    )
