"""What is trained, and on what: the types of `spec.model` and `spec.data`."""

from collections.abc import Mapping
from enum import StrEnum
from itertools import combinations
from typing import Annotated, Any, Self

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.models.decoder import Decoder
from pipelinejob.models.huggingface import decoder_of_config
from pipelinejob.spec.families.built_in import BUILT_IN, GptModel
from pipelinejob.spec.families.decoder import DecoderModel
from pipelinejob.spec.families.family import BYTE_VALUES, BuiltIn
from pipelinejob.spec.rules import IS_ENTRYPOINT, Reason, Rule, ruled, rules_extra

_FAMILIES = " or ".join(BUILT_IN)
_WAYS = (*BUILT_IN, "entrypoint", "huggingFace")
_GIVEN = tuple(f"has(self.{name})" for name in _WAYS)
_HAS_FOREIGN = "has(self.entrypoint) || has(self.huggingFace)"  # layers that the operator cannot make up by itself
LEAST_HUGGING_FACE_LAYERS = 3  # embedding, a block, head


class Corpus(StrEnum):
    """Texts that are there without a download."""

    PYTHON_STDLIB = "python-stdlib"


class Weights(StrEnum):
    """Where the first values of a model's parameters come from."""

    LOAD = "Load"
    RANDOM = "Random"


class HuggingFaceModel(Value):
    """A causal language model of `transformers`, in a folder that the stages see and the operator does not."""

    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="A folder with config.json and safetensors, as save_pretrained writes it, at the same path "
            "in every stage: on a volume, or in the image. The operator never looks into it.",
            json_schema_extra=rules_extra(
                Rule(
                    rule="self.matches('^[.]{0,2}/')",
                    message="must be the path of a folder, which begins with / or ./; a model of a hub must be "
                    "downloaded before, as with `hf download NAME --local-dir FOLDER`",
                    says='"%s" is no path of a folder, which begins with / or ./; a model of a hub must be '
                    "downloaded before, as with `hf download NAME --local-dir FOLDER`",
                    values=("self",),
                )
            ),
        ),
    ]
    trust_remote_code: Annotated[
        bool,
        Field(
            description="Whether the stages may run Python code that the folder brings along (auto_map of its "
            "config.json). Without it such a model is refused; the operator never runs it."
        ),
    ] = False
    weights: Annotated[
        Weights,
        Field(
            description="Load: each stage reads its own layers from the folder. Random: the folder's config.json "
            "alone counts, and training begins with the values that `training.seed` gives."
        ),
    ] = Weights.LOAD


class Model(Value):
    """The model: a built-in family by its sizes, the user's own layers, or a Hugging Face model.

    Exactly one of the three.
    """

    model_config = ruled(
        Rule(
            rule=" || ".join(_GIVEN),
            message=f"neither {' nor '.join(_WAYS)} is given; name the sizes of a built-in {_FAMILIES}, your own "
            "entrypoint, or the folder of a Hugging Face model",
            reason=Reason.REQUIRED,
        ),
        *(
            Rule(
                rule=f"!has(self.{one}) || !has(self.{other})",
                message=f"{one} and {other} are both given; keep one of them",
            )
            for one, other in combinations(_WAYS, 2)
        ),
        Rule(
            rule="!has(self.entrypoint) || has(self.numLayers)",
            message="numLayers is compulsory with entrypoint: the plan is made without running your code; "
            "give the length of the list that it returns",
            field=".numLayers",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule="!has(self.huggingFace) || has(self.numLayers)",
            message="numLayers is compulsory with huggingFace: the plan is made without looking into the folder; "
            "have it written by `pipelinejob validate --fill FILE`, or give num_hidden_layers of its config.json "
            "and two more, for embedding and head",
            field=".numLayers",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule=f"!has(self.huggingFace) || !has(self.numLayers) || self.numLayers >= {LEAST_HUGGING_FACE_LAYERS}",
            message="numLayers of a Hugging Face model counts embedding, blocks and head; use num_hidden_layers of "
            "its config.json and two more",
            says="%d layers cannot be embedding, blocks and head; use num_hidden_layers of config.json and two more",
            values=("self.numLayers",),
            field=".numLayers",
        ),
        Rule(
            rule=f"{_HAS_FOREIGN} || !has(self.numLayers)",
            message="numLayers goes with entrypoint or huggingFace only; the length of a built-in model follows "
            f"from {_FAMILIES}",
            field=".numLayers",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule="has(self.entrypoint) || size(self.arguments) == 0",
            message=f"arguments go with entrypoint only; a built-in model takes its sizes from {_FAMILIES}, a Hugging "
            "Face model from its folder",
            field=".arguments",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule=f"{_HAS_FOREIGN} || !has(self.config)",
            message="config goes with entrypoint or huggingFace only: it says what their layers are; "
            f"a built-in model takes its sizes from {_FAMILIES}",
            field=".config",
            reason=Reason.FORBIDDEN,
        ),
    )

    gpt: Annotated[GptModel | None, Field(description="A built-in GPT, by its sizes.")] = None
    decoder: Annotated[
        DecoderModel | None,
        Field(description="A built-in decoder in the style of Llama, dense or a mixture of experts, by its sizes."),
    ] = None
    entrypoint: Annotated[
        str | None,
        Field(
            max_length=253,
            description="`package.module:function` in your own image; called with `arguments`, it returns the layers.",
            json_schema_extra=rules_extra(IS_ENTRYPOINT),
        ),
    ] = None
    hugging_face: Annotated[
        HuggingFaceModel | None,
        Field(description="A causal language model of `transformers`, by its folder."),
    ] = None
    num_layers: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="Length of the list that `entrypoint` returns, or the blocks of `huggingFace` and two: "
            "embedding and head; compulsory with either. `pipelinejob validate --fill` writes the latter.",
        ),
    ] = None
    arguments: Annotated[
        dict[str, Annotated[str, Field(max_length=1024)]],
        Field(max_length=64, description="Keyword arguments for `entrypoint`, all strings."),
    ] = {}  # noqa: RUF012  # pydantic copies it

    config: Annotated[
        dict[str, Any] | None,
        Field(
            description="The sizes of the layers of `entrypoint` or `huggingFace`, as a Hugging Face config.json "
            "gives them, so what they cost can be counted. The list that `entrypoint` returns must be embedding, "
            "blocks, head. `pipelinejob validate --fill` writes those of `huggingFace`.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the model that a Hugging Face `config.json` describes, as layers of a user's own without code.

        Raises SpecError naming the field that is missing, or is no size.
        """
        return cls(config=dict(config), num_layers=decoder_of_config(config).num_layers)

    @property
    def built_in(self) -> BuiltIn | None:
        """The sizes of a built-in family's model; None for all other layers."""
        given: list[BuiltIn | None] = [getattr(self, name) for name in BUILT_IN]
        return next((sizes for sizes in given if sizes is not None), None)

    @property
    def is_counted(self) -> bool:
        """Whether what the layers cost can be counted without running them."""
        return self.built_in is not None or self.config is not None

    def layer_sizes(self, sequence_length: int) -> Decoder | None:
        """Return the sizes of the layers.

        None for layers of which only the number is known: a user's own, or a Hugging Face model's.

        Raises SpecError naming the field of a config that is missing, or is no size.
        """
        if self.built_in is not None:
            return self.built_in.decoder(sequence_length)
        return None if self.config is None else decoder_of_config(self.config)

    @property
    def tied_bytes(self) -> int:
        """The bytes of the fp32 table that embedding and head share; 0 if each has its own."""
        decoder = self.layer_sizes(1)
        return 0 if decoder is None else 4 * decoder.tied_parameters

    @property
    def vocabulary_size(self) -> int | None:
        """The tokens that the model knows.

        None for a user's own layers without a config, which may know any.

        Raises SpecError naming the field of a config that is missing, or is no size.
        """
        decoder = self.layer_sizes(1)
        return None if decoder is None else decoder.vocabulary

    def shrunk(self, tensor: int = 1, expert: int = 1) -> Self:
        """Return the same layers, those of a built-in family small enough to be run once in passing.

        `tensor` ranks can share them, and `expert` replicas their experts.
        """
        small = {
            name: (sizes.shrunk() if tensor == 1 else sizes.shrunk_to_share(tensor)).with_experts_for(expert)
            for name in BUILT_IN
            if (sizes := getattr(self, name)) is not None
        }
        return self.model_copy(update=small)


class Packing(StrEnum):
    """How documents of prepared tokens become sequences of one length."""

    DOCUMENTS = "Documents"
    CONCATENATE = "Concatenate"
    PADDED = "Padded"


class TokenSource(Value):
    """A folder of prepared tokens, and its share of what is read."""

    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="A folder that `pipelinejob data prepare` wrote, readable in every first and last stage.",
        ),
    ]
    weight: Annotated[
        float,
        Field(gt=0, le=1e6, description="Its share of the sequences, relative to the other sources' weights."),
    ] = 1.0


TokenSources = Annotated[
    tuple[TokenSource, ...],
    Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
]

_DATA_WAYS = ("corpus", "paths", "tokens")


class Data(Value):
    """What is trained on. Exactly one of `corpus`, `paths` and `tokens`."""

    model_config = ruled(
        Rule(
            rule=" || ".join(f"has(self.{name})" for name in _DATA_WAYS),
            message="neither corpus nor paths nor tokens is given; name your files in paths, prepared folders in "
            "tokens, or use the corpus python-stdlib",
            reason=Reason.REQUIRED,
        ),
        *(
            Rule(
                rule=f"!has(self.{one}) || !has(self.{other})",
                message=f"{one} and {other} are both given; keep one of them",
            )
            for one, other in combinations(_DATA_WAYS, 2)
        ),
        Rule(
            rule="!has(self.packing) || has(self.tokens)",
            message="packing goes with tokens only: files that are read as bytes have no documents; leave it out",
            field=".packing",
            reason=Reason.FORBIDDEN,
        ),
    )

    corpus: Annotated[Corpus | None, Field(description="A text that is always there: `python-stdlib`.")] = None
    paths: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] | None,
        Field(
            min_length=1,
            max_length=64,
            description="Files, or globs of files, readable in every first and last stage; their bytes are the tokens.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    tokens: Annotated[
        TokenSources | None,
        Field(description="Folders of tokens that `pipelinejob data prepare` wrote, mixed by weight."),
    ] = None
    packing: Annotated[
        Packing | None,
        Field(
            description="How documents of `tokens` become sequences. Documents: several in one sequence, none sees "
            "another, for models that take positions. Concatenate: one after the other, as one long text. Padded: one "
            "document a sequence. If unset, Documents where the model takes positions, else Concatenate."
        ),
    ] = None
    sequence_length: Annotated[int, Field(ge=1, le=1_048_576, description="Tokens in one training sequence.")] = 128


_TAKE_POSITIONS = {"decoder": "decoder", "huggingFace": "hugging_face"}
_MAY_TAKE_POSITIONS = (*_TAKE_POSITIONS, "entrypoint")
"""The fields of `spec.model` whose layers use each token's position in its own document, or may (the trainer looks)."""


def packing_of(model: Model, data: Data) -> Packing:
    """Return how prepared documents become sequences: as asked, or as the model allows."""
    if data.packing is not None:
        return data.packing
    takes = any(getattr(model, name) is not None for name in _TAKE_POSITIONS.values())
    return Packing.DOCUMENTS if takes else Packing.CONCATENATE


# Of a spec as a whole: what is read must suit the model.
WORKLOAD_RULES = (
    Rule(
        rule="!has(self.data.packing) || self.data.packing != 'Documents' || "
        + " || ".join(f"has(self.model.{name})" for name in _MAY_TAKE_POSITIONS),
        message="Documents keeps documents of one sequence apart by their positions, which this model does not take; "
        "use Concatenate, or Padded",
        field=".data.packing",
    ),
    *(
        Rule(
            rule=f"has(self.data.tokens) || !has(self.model.{name})"
            f" || self.model.{name}.vocabularySize >= {BYTE_VALUES}",
            message=f"vocabularySize must be at least {BYTE_VALUES} where text is read as bytes; prepared tokens may "
            "need fewer (data.tokens)",
            says=f"%d tokens are too few: the text is read as bytes; use {BYTE_VALUES} or more",
            values=(f"self.model.{name}.vocabularySize",),
            field=f".model.{name}.vocabularySize",
        )
        for name, kind in BUILT_IN.items()
        if "vocabulary_size" in kind.model_fields
    ),
    Rule(
        rule="!has(self.model.decoder) || !has(self.model.decoder.experts) || self.model.decoder.experts.perToken > 1"
        " || !self.model.decoder.experts.normalized",
        message="with perToken 1, a token's only weight, made to add up to 1, is 1 whatever the router gives, so that "
        "the loss would not train the router; use normalized: false",
        field=".model.decoder.experts.normalized",
    ),
    Rule(
        rule="!has(self.evaluation) || !has(self.evaluation.tokens) || has(self.data.tokens)",
        message="evaluation.tokens goes with data.tokens only: what is trained on bytes is evaluated on bytes; use "
        "evaluation.paths",
        field=".evaluation.tokens",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule="!has(self.evaluation) || !has(self.evaluation.paths) || !has(self.data.tokens)",
        message="evaluation.paths are read as bytes, which data.tokens are not; prepare them, and use "
        "evaluation.tokens",
        field=".evaluation.paths",
        reason=Reason.FORBIDDEN,
    ),
)
