"""What is trained, and on what: the types of `spec.model` and `spec.data`."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from pipelinejob.huggingface import decoder_of_config
from pipelinejob.rules import Reason, Rule, ruled, rules_extra
from pipelinejob.values import Value

BYTE_VALUES = 256  # the vocabulary of text that is read as bytes


class Corpus(StrEnum):
    """Texts that are there without a download."""

    PYTHON_STDLIB = "python-stdlib"


class GptModel(Value):
    """A decoder-only transformer by its sizes; bytes are its tokens."""

    model_config = ruled(
        Rule(
            rule="self.hiddenSize % self.numHeads == 0",
            message="hiddenSize must be a multiple of numHeads, so that every head is equally wide",
            says="%d cannot be cut into %d equal heads; use a multiple of %d",
            values=("self.hiddenSize", "self.numHeads", "self.numHeads"),
            field=".hiddenSize",
        ),
        Rule(
            rule=f"self.vocabularySize >= {BYTE_VALUES}",
            message=f"vocabularySize must be at least {BYTE_VALUES}: the text is read as bytes",
            says=f"%d tokens are too few: the text is read as bytes; use {BYTE_VALUES} or more",
            values=("self.vocabularySize",),
            field=".vocabularySize",
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
        int, Field(ge=2, le=1_000_000, description="Number of tokens; 256 for bytes, more to pad it.")
    ] = BYTE_VALUES
    dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of the residual branches' and the embedding's elements that are dropped."),
    ] = 0.0
    tie_embeddings: Annotated[
        bool, Field(description="The head multiplies with the embedding's table instead of one of its own.")
    ] = False


class Model(Value):
    """The model: a built-in family by its sizes, or the user's own layers. Exactly one of `gpt` and `entrypoint`."""

    model_config = ruled(
        Rule(
            rule="has(self.gpt) || has(self.entrypoint)",
            message="neither gpt nor entrypoint is given; name the sizes of a built-in gpt, or your own entrypoint",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule="!has(self.gpt) || !has(self.entrypoint)",
            message="gpt and entrypoint are both given; keep one of them",
        ),
        Rule(
            rule="!has(self.entrypoint) || has(self.numLayers)",
            message="numLayers is compulsory with entrypoint: the plan is made without running your code; "
            "give the length of the list that it returns",
            field=".numLayers",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule="has(self.entrypoint) || !has(self.numLayers)",
            message="numLayers goes with entrypoint only; the length of a built-in model is gpt.numLayers",
            field=".numLayers",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule="has(self.entrypoint) || size(self.arguments) == 0",
            message="arguments go with entrypoint only; a built-in model takes its sizes from gpt",
            field=".arguments",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule="has(self.entrypoint) || !has(self.config)",
            message="config goes with entrypoint only: it describes your own layers; "
            "a built-in model takes its sizes from gpt",
            field=".config",
            reason=Reason.FORBIDDEN,
        ),
    )

    gpt: Annotated[GptModel | None, Field(description="A built-in GPT, by its sizes.")] = None
    entrypoint: Annotated[
        str | None,
        Field(
            max_length=253,
            description="`package.module:function` in your own image; called with `arguments`, it returns the layers.",
            json_schema_extra=rules_extra(
                Rule(
                    rule="self.matches('^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$')",
                    message="must be package.module:function, as in mymodel.layers:build",
                    says='"%s" is no entrypoint; write package.module:function, as in mymodel.layers:build',
                    values=("self",),
                )
            ),
        ),
    ] = None
    num_layers: Annotated[
        int | None,
        Field(ge=1, le=4096, description="Length of the list that `entrypoint` returns; compulsory with it."),
    ] = None
    arguments: Annotated[
        dict[str, Annotated[str, Field(max_length=1024)]],
        Field(max_length=64, description="Keyword arguments for `entrypoint`, all strings."),
    ] = {}  # noqa: RUF012  # pydantic copies it

    config: Annotated[
        dict[str, Any] | None,
        Field(
            description="The sizes of your own layers, as a Hugging Face config.json gives them, so what they cost "
            "can be counted. The list that `entrypoint` returns must be embedding, blocks, head.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None

    @property
    def tied_bytes(self) -> int:
        """Give the bytes of the fp32 table that embedding and head share; 0 if each has its own."""
        gpt = self.gpt
        if gpt is not None:
            return 4 * gpt.vocabulary_size * gpt.hidden_size if gpt.tie_embeddings else 0
        return 0 if self.config is None else 4 * decoder_of_config(self.config).tied_parameters


class Data(Value):
    """The training text. Exactly one of `corpus` and `paths`."""

    model_config = ruled(
        Rule(
            rule="has(self.corpus) || has(self.paths)",
            message="neither corpus nor paths is given; name your files in paths, or use the corpus python-stdlib",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule="!has(self.corpus) || !has(self.paths)",
            message="corpus and paths are both given; keep one of them",
        ),
    )

    corpus: Annotated[Corpus | None, Field(description="A text that is always there: `python-stdlib`.")] = None
    paths: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] | None,
        Field(
            min_length=1,
            max_length=64,
            description="Files, or globs of files, readable in every first and last stage.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    sequence_length: Annotated[int, Field(ge=1, le=1_048_576, description="Tokens in one training sequence.")] = 128
