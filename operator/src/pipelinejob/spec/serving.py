"""What a user writes of serving, and what `spec.mode` asks of the rest of a spec."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.families.built_in import BUILT_IN
from pipelinejob.spec.rules import Reason, Rule, ruled, unchanging


class Mode(StrEnum):
    """What the stages do."""

    TRAIN = "Train"
    SERVE = "Serve"
    BATCH = "Batch"


class Split(StrEnum):
    """By which passes layers are shared among stages."""

    TOKENS = "Tokens"
    PROMPTS = "Prompts"


class Batch(Value):
    """Where the requests of mode Batch are, and where their answers go: files as the first stage sees them."""

    input: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="File of requests, one in a line as OpenAI's batches have them: custom_id, url, body.",
        ),
    ]
    output: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="File that their answers are appended to; what is answered there is not asked again.",
        ),
    ]


class RollingUpdate(Value):
    """How many chains there may be, while those of an older spec are exchanged for new ones."""

    model_config = ruled(
        Rule(
            rule="!has(self.maxSurge) || !has(self.maxUnavailable) || self.maxSurge + self.maxUnavailable > 0",
            message="with maxSurge and maxUnavailable both 0 no chain could be exchanged; make one of them 1 or more",
            field=".maxSurge",
        ),
    )

    max_surge: Annotated[
        int | None,
        Field(
            ge=0,
            le=1024,
            description="Chains beyond `parallelism.data` while they are exchanged; a quarter of them, rounded up, if "
            "unset. 0: an old one goes first, where there is no room for one more.",
        ),
    ] = None
    max_unavailable: Annotated[
        int | None,
        Field(
            ge=0,
            le=1024,
            description="Chains that may be missing meanwhile; a quarter of them, rounded down, if unset.",
        ),
    ] = None

    def limits(self, replicas: int) -> tuple[int, int]:
        """Return how many chains there may be beyond so many, and how many may be missing; at least one of them is 1.

        Unset is a quarter, as Deployments have it.
        """
        surge = -(-replicas // 4) if self.max_surge is None else self.max_surge
        missing = replicas // 4 if self.max_unavailable is None else self.max_unavailable
        return (surge, missing) if surge + missing else (0, 1)


class Serving(Value):
    """How a model is served: over HTTP in OpenAI's form, by the first stage; or to a file's requests."""

    model_config = ruled(
        Rule(
            rule="self.cacheTokens >= self.blockTokens",
            message="cacheTokens must be at least blockTokens; make the cache larger",
            field=".cacheTokens",
        ),
    )

    port: Annotated[int, Field(ge=1, le=65535, description="Port of the HTTP front on the first stage.")] = 8000
    model_name: Annotated[
        str | None,
        Field(min_length=1, max_length=253, description="What clients call the model; the job's name if unset."),
    ] = None
    batch: Annotated[
        Batch | None, Field(description="Files of requests and answers; compulsory with mode Batch, and of it alone.")
    ] = None
    rolling_update: Annotated[
        RollingUpdate, Field(description="How chains are exchanged when the spec changes, with mode Serve.")
    ] = RollingUpdate()
    from_checkpoint: Annotated[
        bool,
        Field(
            description="true: the weights are those of the newest checkpoint of a job that trained this model, which "
            "spec.checkpoint names; it is read where it lies. false: those of model.huggingFace."
        ),
    ] = False
    tokenizer: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4096,
            description="Folder of the tokenizer, for a model of a built-in family; its tokens are bytes if unset.",
        ),
    ] = None
    cache_tokens: Annotated[
        int,
        Field(
            ge=1,
            le=2**31 - 1,
            description="Tokens whose keys and values each stage keeps, of all answers together; also the longest "
            "that one text may be, prompt and answer.",
        ),
    ] = 16384
    block_tokens: Annotated[
        int, Field(ge=1, le=4096, description="Tokens of a block, which the cache is given out in.")
    ] = 16
    group_size: Annotated[
        int,
        Field(
            ge=1,
            le=4096,
            description="Answers in one batch at most. There is one batch more than stages, so that every stage has "
            "one to work on.",
        ),
    ] = 16
    chunk_tokens: Annotated[
        int,
        Field(ge=1, le=65536, description="Tokens of a prompt's first chunk; later ones are as long as cost as much."),
    ] = 256
    split: Annotated[
        Split,
        Field(
            description="How layers are shared among stages. Tokens: so that passes of tokens take each as long, for "
            "the most tokens a second. Prompts: so that chunks of prompts do, of which the head computes the last "
            "token alone, for the earliest first token of long prompts.",
        ),
    ] = Split.TOKENS
    batch_invariant: Annotated[
        bool,
        Field(
            description="true: an answer is the same to the last bit whoever else is answered, whatever the cache "
            "holds, and though a stage was lost. Sequences of a batch are computed one by one then, and no beginning "
            "of a prompt is taken from the cache: larger batches gain nothing.",
        ),
    ] = False
    max_waiting: Annotated[
        int, Field(ge=0, le=1_000_000, description="Answers that may wait; more requests are refused with 429.")
    ] = 256
    timeout_seconds: Annotated[
        int, Field(ge=1, le=86400, description="Seconds that one request may take before it is refused with 504.")
    ] = 600


_TRAINS_ONLY = ("data", "schedule", "training")

SERVING_RULES = (
    *(
        Rule(
            rule=f"self.mode != 'Train' || has(self.{name})",
            message=f"{name} is missing, which mode Train needs; give it",
            field=f".{name}",
            reason=Reason.REQUIRED,
        )
        for name in _TRAINS_ONLY
    ),
    *(
        Rule(
            rule=f"self.mode == 'Train' || !has(self.{name})",
            message=f"{name} is of training alone, and the mode is not Train; leave it out",
            field=f".{name}",
            reason=Reason.FORBIDDEN,
        )
        for name in (*_TRAINS_ONLY, "evaluation")
    ),
    Rule(
        rule="self.mode != 'Train' || !has(self.serving)",
        message="serving goes with modes Serve and Batch only; set mode, or leave it out",
        field=".serving",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule="self.mode == 'Train' || has(self.model.huggingFace) || (has(self.serving) && "
        f"self.serving.fromCheckpoint && ({' || '.join(f'has(self.model.{name})' for name in BUILT_IN)}))",
        message="a model of a built-in family is served as it was trained: set serving.fromCheckpoint, and checkpoint "
        "to where its job saves; layers of an entrypoint cannot be served",
        field=".model",
    ),
    Rule(
        rule="self.mode == 'Train' || !has(self.serving) || !has(self.serving.tokenizer)"
        " || !has(self.model.huggingFace)",
        message="tokenizer is for models of built-in families; a folder's model has its own, leave it out",
        field=".serving.tokenizer",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule="self.mode == 'Train' || (has(self.parallelism.pipeline) && !has(self.parallelism.gpus)"
        " && (!has(self.parallelism.tensor) || self.parallelism.tensor == 1) && self.parallelism.expert == 1)",
        message="with mode Serve or Batch, parallelism is pipeline, the number of stages, and with Serve data, the "
        "number of replicas; leave the rest out",
        field=".parallelism",
    ),
    Rule(
        rule="self.mode != 'Batch' || !has(self.parallelism.data) || self.parallelism.data == 1",
        message="a batch is answered by one replica; leave data out, or divide the file and create more jobs",
        field=".parallelism.data",
    ),
    Rule(
        rule="self.mode == 'Train' || self.device == 'cpu'",
        message="with mode Serve or Batch, device must be cpu: serving on GPUs has not been tried yet",
        field=".device",
    ),
    Rule(
        rule="self.mode == 'Train' || !has(self.scheduling.minReplicas)",
        message="minReplicas is of training alone, and the mode is not Train; leave it out",
        field=".scheduling.minReplicas",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule="self.mode == 'Train' || !self.recovery.inPlace",
        message="recovery.inPlace is of training alone; where a job serves, a lost stage alone is replaced anyway; "
        "leave it out",
        field=".recovery.inPlace",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule="self.mode != 'Batch' || (has(self.serving) && has(self.serving.batch))",
        message="mode Batch needs serving.batch: the files of requests and of answers",
        field=".serving.batch",
        reason=Reason.REQUIRED,
    ),
    Rule(
        rule="self.mode == 'Batch' || !has(self.serving) || !has(self.serving.batch)",
        message="batch goes with mode Batch only; set mode, or leave it out",
        field=".serving.batch",
        reason=Reason.FORBIDDEN,
    ),
    unchanging("mode", why="checkpoints and requests are of one kind of job"),
)


def while_training(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules that hold where what they speak of is there, which only mode Train has."""
    return tuple(replace(rule, rule=f"{_missing(rule)} || ({rule.rule})") for rule in rules)


def _missing(rule: Rule) -> str:
    """Return the CEL that says that something is not there which a rule speaks of.

    An API server takes microseconds for each field that it looks up, on every write of a status
    too.
    """
    spoken_of = [
        f"!has({value}.{name})"
        for value in ("self", "oldSelf")
        for name in _TRAINS_ONLY
        if re.search(rf"\b{value}\.{name}\b", rule.rule)
    ]
    return " || ".join(spoken_of or ["!has(self.training)"])


def with_neutral_training(spec: Any) -> Any:
    """Give a spec that serves what planning asks of every spec: a micro-batch as long as a chunk, and no more.

    The planner then shares layers by what a chunk of a prompt costs.
    """
    if not isinstance(spec, Mapping) or spec.get("mode") not in {Mode.SERVE, Mode.BATCH}:
        return spec
    serving = spec.get("serving") or {}
    chunk = serving.get("chunkTokens", 256) if isinstance(serving, Mapping) else serving.chunk_tokens
    return {
        **spec,
        "data": {"corpus": "python-stdlib", "sequenceLength": chunk},
        "schedule": {"name": "1F1B", "microBatches": 1, "microBatchSize": 1},
        "training": {"steps": 1},
        "serving": serving,
    }
