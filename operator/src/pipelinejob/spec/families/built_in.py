"""The model families that are built in: each one's sizes, and all that follows from them.

What is checked, counted, planned, and run in small follows from the type of a family's sizes; the
trainer adds the function that makes its layers.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Self

from pydantic import Field

from pipelinejob.models.branches import biased_block
from pipelinejob.models.decoder import Decoder
from pipelinejob.spec.families.decoder import DecoderModel
from pipelinejob.spec.families.family import BYTE_VALUES, BuiltIn
from pipelinejob.spec.rules import Rule, ruled


class GptModel(BuiltIn):
    """A decoder-only transformer by its sizes."""

    model_config = ruled(
        Rule(
            rule="self.hiddenSize % self.numHeads == 0",
            message="hiddenSize must be a multiple of numHeads, so that every head is equally wide",
            says="%d cannot be cut into %d equal heads; use a multiple of %d",
            values=("self.hiddenSize", "self.numHeads", "self.numHeads"),
            field=".hiddenSize",
        ),
    )

    num_layers: Annotated[int, Field(ge=1, le=1024, description="Number of transformer blocks.")]
    hidden_size: Annotated[
        int, Field(ge=8, le=65536, description="Width of the residual stream; a multiple of numHeads.")
    ]
    num_heads: Annotated[int, Field(ge=1, le=1024, description="Attention heads in each block.")]
    feed_forward_size: Annotated[
        int | None, Field(ge=8, le=262144, description="Width of the feed-forward layer; 4 * hiddenSize if unset.")
    ] = None
    vocabulary_size: Annotated[
        int,
        Field(
            ge=2,
            le=1_000_000,
            description="Number of tokens; 256 for bytes, the tokenizer's for prepared tokens, more to pad it.",
        ),
    ] = BYTE_VALUES
    dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of the residual branches' and the embedding's elements that are dropped."),
    ] = 0.0
    tie_embeddings: Annotated[
        bool, Field(description="The head multiplies with the embedding's table instead of one of its own.")
    ] = False

    layers_cel = "numLayers + 2"

    def decoder(self, sequence_length: int) -> Decoder:
        return _gpt_decoder(self, sequence_length)

    def shrunk(self) -> Self:
        sizes = {"hidden_size": 16, "num_heads": 2, "feed_forward_size": 32, "vocabulary_size": BYTE_VALUES}
        return self.model_copy(update=sizes)

    def shrunk_to_share(self, tensor: int) -> Self:
        small = self.shrunk()
        sizes = ("hidden_size", "num_heads", "feed_forward_size")
        return small.model_copy(update={"dropout": 0.0, **{name: tensor * getattr(small, name) for name in sizes}})


@lru_cache(maxsize=64)  # so that the same sizes are the same decoder
def _gpt_decoder(model: GptModel, sequence_length: int) -> Decoder:
    """Return the sizes of GPT-2's layers.

    The embedding learns a position for each token of a sequence.
    """
    width = model.hidden_size
    block = biased_block(width, heads=model.num_heads, inner=model.feed_forward_size or 4 * width)
    return Decoder(
        width=width,
        token_width=width,
        vocabulary=model.vocabulary_size,
        positions=sequence_length,
        blocks=(block,) * model.num_layers,
        head_vectors=2 * width,
        is_tied=model.tie_embeddings,
        has_dropout=model.dropout > 0,
        is_fused=True,
    )


BUILT_IN: Mapping[str, type[BuiltIn]] = {"gpt": GptModel, "decoder": DecoderModel}
"""The families by their fields in `spec.model`.

A new one is a type of its sizes, a line here, and a field there.
"""

# How many layers there are, as rules of a whole spec say it.
LAYERS_KNOWN = f"({' || '.join(f'has(self.model.{name})' for name in (*BUILT_IN, 'numLayers'))})"
_OF_BUILT_IN = "".join(
    f"has(self.model.{name}) ? self.model.{name}.{kind.layers_cel} : " for name, kind in BUILT_IN.items()
)
LAYERS = f"({_OF_BUILT_IN}has(self.model.numLayers) ? self.model.numLayers : 0)"
