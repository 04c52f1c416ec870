"""What a user writes of the training itself: how far and how, when it is evaluated, where its state is saved."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.lora import Lora
from pipelinejob.spec.optimization import (
    MAX_GROUPS,
    AdafactorSettings,
    AdamWSettings,
    Decay,
    MuonSettings,
    Optimizer,
    ParameterGroup,
    SgdSettings,
    only_with,
)
from pipelinejob.spec.rules import IS_ENTRYPOINT, Reason, Rule, ruled, rules_extra, same, unchanging
from pipelinejob.spec.workload import TokenSources


class Precision(StrEnum):
    """Arithmetic of forward and backward; parameters and optimiser state stay fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


class OnNotFinite(StrEnum):
    """What happens in a step whose loss or gradients are infinite or no numbers."""

    STOP = "Stop"
    SKIP = "Skip"
    ROLL_BACK = "RollBack"


class Compile(StrEnum):
    """What torch.compile compiles."""

    OFF = "Off"
    LAYERS = "Layers"


class TensorBoard(Value):
    """Where TensorBoard's event files go."""

    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Folder below that of the run's output or, on a cluster, of its checkpoints.",
            json_schema_extra=rules_extra(
                Rule(
                    rule="!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')",
                    message="must be a folder below that of the run: no leading / and no ..",
                    says='"%s" leads out of the folder of the run; write a folder below it, without leading / and ..',
                    values=("self",),
                )
            ),
        ),
    ] = "tensorboard"


class Tracking(Value):
    """Who is told of each step besides the log: by one rank only, and without a say in the training."""

    tensor_board: Annotated[
        TensorBoard | None, Field(description="Event files for TensorBoard; {} for the usual folder.")
    ] = None
    tracker: Annotated[
        str | None,
        Field(
            min_length=3,
            max_length=512,
            description="`package.module:function` in your own image, called once with a mapping that describes the "
            "run; what it returns is called after each step with the step's number and a mapping of values.",
            json_schema_extra=rules_extra(
                Rule(
                    rule="self.matches('^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$')",
                    message="must be package.module:function, as in mymodel.tracking:begin",
                    says='"%s" is no function; write package.module:function, as in mymodel.tracking:begin',
                    values=("self",),
                )
            ),
        ),
    ] = None


class Training(Value):
    """What is trained, how far, and how."""

    model_config = ruled(
        Rule(
            rule="self.warmupSteps <= self.steps",
            message="warmupSteps must be at most steps",
            says="%d warm-up steps do not fit into %d steps; use at most %d",
            values=("self.warmupSteps", "self.steps", "self.steps"),
            field=".warmupSteps",
        ),
        Rule(
            rule="!has(self.decay.decaySteps) || self.decay.decaySteps <= self.steps - self.warmupSteps",
            message="decay.decaySteps must be at most steps - warmupSteps",
            says="%d steps of decay do not fit into the %d after the warm-up; use at most %d",
            values=("self.decay.decaySteps", "self.steps - self.warmupSteps", "self.steps - self.warmupSteps"),
            field=".decay.decaySteps",
        ),
        only_with("adamW", Optimizer.ADAMW, Optimizer.MUON),
        only_with("sgd", Optimizer.SGD),
        only_with("adafactor", Optimizer.ADAFACTOR),
        only_with("muon", Optimizer.MUON),
        unchanging("seed", why="the data order that was trained on so far follows from it"),
        unchanging("lora", why="its checkpoints hold the adapters that were trained so far, and nothing else"),
    )

    steps: Annotated[int, Field(ge=1, le=1_000_000_000, description="Optimiser steps in all.")]
    optimizer: Annotated[
        Optimizer,
        Field(
            description="The optimiser, as torch.optim has it. Muon: matrices of hidden layers; the others, embedding "
            "and head by AdamW."
        ),
    ] = Optimizer.ADAMW
    adam_w: Annotated[AdamWSettings | None, Field(description="Settings of AdamW, also beside Muon.")] = None
    sgd: Annotated[SgdSettings | None, Field(description="Settings of SGD.")] = None
    adafactor: Annotated[AdafactorSettings | None, Field(description="Settings of Adafactor.")] = None
    muon: Annotated[MuonSettings | None, Field(description="Settings of Muon.")] = None
    learning_rate: Annotated[float, Field(gt=0, le=10, description="Peak learning rate.")] = 3e-4
    warmup_steps: Annotated[
        int,
        Field(ge=0, le=1_000_000_000, description="Steps of linear warm-up; then `decay`."),
    ] = 0
    decay: Annotated[Decay, Field(description="How the learning rate goes on after the warm-up.")] = Decay()
    weight_decay: Annotated[
        float, Field(ge=0, le=1, description="Weight decay on matrices, decoupled; with SGD, added to the gradient.")
    ] = 0.1
    groups: Annotated[
        tuple[ParameterGroup, ...],
        Field(
            max_length=MAX_GROUPS,
            description="Parameters that are trained otherwise than the rest; the first group that matches counts.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()
    clip_norm: Annotated[
        float, Field(ge=0, le=1e6, description="Bound on the global gradient norm over all stages; 0 clips nothing.")
    ] = 1.0
    loss: Annotated[
        str | None,
        Field(
            max_length=253,
            description="`package.module:function` in your own image: the loss of what the last layer returned and of "
            "targets (batch, sequence), where -100 does not count. It returns the mean over the micro-batch's counted "
            "tokens, or a pair (sum, count). If unset, cross entropy of logits (batch, sequence, vocabulary).",
            json_schema_extra=rules_extra(IS_ENTRYPOINT),
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights and data order.")] = 0
    precision: Annotated[Precision, Field(description="fp32 or bf16 arithmetic; master weights are fp32.")] = (
        Precision.FP32
    )
    compile: Annotated[
        Compile,
        Field(
            description="Layers: each layer is compiled by torch.compile, before the first step. It pays on long runs "
            "of layers with many small operations; losses agree with those of Off to rounding."
        ),
    ] = Compile.OFF
    preflight: Annotated[
        bool,
        Field(
            description="Before the first step, compare one step's gradients of a shrunk model with a single "
            "process's, and fail if they differ."
        ),
    ] = False
    lora: Annotated[
        Lora | None,
        Field(description="Train adapters of low rank instead of the model's own weights, which stay as they are."),
    ] = None
    on_not_finite: Annotated[
        OnNotFinite,
        Field(
            description="What happens in a step whose loss or gradients are infinite or no numbers. Stop: the job "
            "fails. Skip: weights and optimiser stay as they were. RollBack: they become those of the last checkpoint, "
            "and all text since then is left out."
        ),
    ] = OnNotFinite.STOP
    not_finite_limit: Annotated[
        int,
        Field(ge=1, le=1000, description="Steps skipped, or returns to one checkpoint, in a row; one more stops."),
    ] = 3
    tracking: Annotated[Tracking, Field(description="Who is told of each step.")] = Tracking()

    @property
    def table_moments(self) -> int:
        """How many numbers the optimiser keeps for each of an embedding's, rows and columns of it aside."""
        match self.optimizer:
            case Optimizer.ADAMW | Optimizer.MUON:
                return 2
            case Optimizer.SGD:
                return int(self.sgd is not None and self.sgd.momentum > 0)
            case Optimizer.ADAFACTOR:
                return 0


class Evaluation(Value):
    """When and on what the model is evaluated, with the forward passes of the job's schedule."""

    interval_steps: Annotated[int, Field(ge=1, le=1_000_000_000, description="Steps between evaluations.")]
    batches: Annotated[int, Field(ge=1, le=65536, description="Batches of each evaluation, as large as a step's.")] = 1
    paths: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] | None,
        Field(
            min_length=1,
            max_length=64,
            description="Files, or globs of files, to evaluate on, readable in every first and last stage; "
            "if neither they nor tokens are given, the last twentieth of the training text, or of each source's "
            "documents, which is then not trained on.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    tokens: Annotated[
        TokenSources | None,
        Field(description="Folders of prepared tokens to evaluate on, where `data.tokens` is trained on."),
    ] = None

    @property
    def is_held_out(self) -> bool:
        """Whether what is evaluated on is taken out of what would be trained on."""
        return self.paths is None and self.tokens is None


class CheckpointVolume(Value):
    """Where checkpoints live: a volume that all stages share."""

    claim_name: Annotated[
        str, Field(min_length=1, max_length=253, description="A PersistentVolumeClaim of the job's namespace.")
    ]


class OnDataChange(StrEnum):
    """What a run does whose checkpoint was trained on another order of samples: other text, sequence length or seed."""

    REFUSE = "Refuse"
    START_ANEW = "StartAnew"


class Checkpoint(Value):
    """When and where the state is saved."""

    model_config = ruled(
        unchanging("path", why="the state would be left behind in the old folder"),
        unchanging("volume", why="the state would be left behind on the old volume"),
    )

    interval_steps: Annotated[
        int, Field(ge=0, le=1_000_000_000, description="Steps between checkpoints; 0: only at the end.")
    ] = 100
    asynchronous: Annotated[
        bool,
        Field(
            description="true: the state is copied at a step border and written beside training, which takes as much "
            "memory of the host again as what is saved. The last checkpoint is always waited for."
        ),
    ] = False
    keep: Annotated[int, Field(ge=1, le=1000, description="Verified checkpoints kept; older ones are deleted.")] = 2
    keep_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=31_536_000,
            description="Older ones than the newest `keep` stay for so many seconds from when they were written.",
        ),
    ] = 0
    copies: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...],
        Field(
            max_length=4,
            description="Where each checkpoint is copied to, beside training: URLs that fsspec knows, such as "
            "`s3://bucket/run` or `file:///second-volume/run`, of a bucket or a mount of `template`. A run whose "
            "volume has none so new goes on from the newest whole copy. Each place keeps the newest `keep`, below "
            "`<namespace>/<name>`.",
            json_schema_extra={
                "x-kubernetes-list-type": "set",
                **rules_extra(
                    Rule(
                        rule="self.all(each, each.matches('^[a-z][a-z0-9+.-]*://.'))",
                        message="each is a URL with its scheme, such as s3://bucket/run or file:///volume/run",
                    )
                ),
            },
        ),
    ] = ()
    path: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1024,
            description="Folder below the volume, or the run's output; `<namespace>/<job>` on a volume if unset.",
            json_schema_extra=rules_extra(
                Rule(
                    rule="!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')",
                    message="must be a folder below the volume: no leading / and no ..",
                    says='"%s" leads out of the volume; write a folder below it, without leading / and ..',
                    values=("self",),
                )
            ),
        ),
    ] = None
    on_data_change: Annotated[
        OnDataChange,
        Field(
            description="What happens where a checkpoint was trained on other text, or on sequences of another length. "
            "Refuse: nothing is trained. StartAnew: weights, optimiser and step go on from the checkpoint, the text is "
            "read from its beginning. A change of batch, replicas or schedule needs neither: a run goes on with the "
            "next sample."
        ),
    ] = OnDataChange.REFUSE
    volume: Annotated[
        CheckpointVolume | None,
        Field(description="A volume shared by all stages; without one, checkpoints do not outlive the pods."),
    ] = None


_ANEW = "(oldSelf.suspend && self.checkpoint.onDataChange == 'StartAnew')"


def _is_held_out(spec: str) -> str:
    return f"(has({spec}.evaluation) && !has({spec}.evaluation.paths) && !has({spec}.evaluation.tokens))"


# Of a spec as a whole: what must stay as it is, or the text is read from its beginning.
DATA_RULES = (
    Rule(
        rule=f"{same('data')} || {_ANEW}",
        message="data cannot change: the position in it is part of the checkpoints; while the job is suspended, set "
        "checkpoint.onDataChange to StartAnew to read other data from its beginning, or create a job of another name",
        field=".data",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule=f"{_is_held_out('self')} == {_is_held_out('oldSelf')} || !oldSelf.suspend || {_ANEW}",
        message="evaluation without paths or tokens takes the last twentieth of the text out of training, so it can "
        "neither come nor go: the position in the text is part of the checkpoints; give evaluation.paths, or set "
        "checkpoint.onDataChange to StartAnew to read the text from its beginning",
        field=".evaluation",
        reason=Reason.FORBIDDEN,
    ),
)
