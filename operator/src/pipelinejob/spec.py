"""What a user writes: the types of a PipelineJob's `spec`.

The CRD is generated from these types (`crd.py`), field descriptions included, so the API server, `kubectl explain` and the
command line speak of the same thing. What one field can say alone stands here as a constraint; what needs two fields stands
here as a CEL rule that the API server and the command line both evaluate; what a schema cannot see is in `check.py`.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from pipelinejob.values import Value

NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class ScheduleName(StrEnum):
    """Micro-batch schedules this version can play."""

    GPIPE = "GPipe"
    ONE_F_ONE_B = "1F1B"


class Precision(StrEnum):
    """Arithmetic of forward and backward; parameters and optimiser state stay fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


class Corpus(StrEnum):
    """Texts that are there without a download."""

    PYTHON_STDLIB = "python-stdlib"


class Device(StrEnum):
    """What a stage computes on."""

    GPU = "gpu"
    CPU = "cpu"


class RestartAction(StrEnum):
    """What a failure rule does."""

    FAIL = "Fail"
    RESTART = "Restart"


class GptModel(Value):
    """A decoder-only transformer by its sizes; bytes are its tokens."""

    num_layers: Annotated[int, Field(ge=1, le=1024, description="Number of transformer blocks.")]
    hidden_size: Annotated[int, Field(ge=8, le=65536, description="Width of the residual stream; a multiple of numHeads.")]
    num_heads: Annotated[int, Field(ge=1, le=1024, description="Attention heads in each block.")]
    feed_forward_size: Annotated[
        int | None, Field(ge=8, le=262144, description="Width of the feed-forward layer; 4 * hiddenSize if unset.")
    ] = None
    vocabulary_size: Annotated[int, Field(ge=2, le=1_000_000, description="Number of tokens; 256 for bytes.")] = 256


class Model(Value):
    """The model: a built-in family by its sizes, or the user's own layers. Exactly one of `gpt` and `entrypoint`."""

    gpt: Annotated[GptModel | None, Field(description="A built-in GPT, by its sizes.")] = None
    entrypoint: Annotated[
        str | None,
        Field(
            max_length=253,
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$",
            description="`package.module:function` in your own image; called with `arguments`, it returns the list of layers.",
        ),
    ] = None
    num_layers: Annotated[
        int | None,
        Field(ge=1, le=4096, description="Length of the list that `entrypoint` returns; compulsory with it."),
    ] = None
    arguments: Annotated[
        dict[str, Annotated[str, Field(max_length=1024)]],
        Field(max_length=64, description="Keyword arguments for `entrypoint`, all strings."),
    ] = {}


class Data(Value):
    """The training text. Exactly one of `corpus` and `paths`."""

    corpus: Annotated[Corpus | None, Field(description="A text that is always there: `python-stdlib`.")] = None
    paths: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] | None,
        Field(min_length=1, max_length=64, description="Files, or globs of files, readable in every first and last stage."),
    ] = None
    sequence_length: Annotated[int, Field(ge=1, le=1_048_576, description="Tokens in one training sequence.")] = 128


class Parallelism(Value):
    """How many ways the work is split; ranks = pipeline * data * tensor."""

    pipeline: Annotated[int, Field(ge=1, le=1024, description="Number of pipeline stages.")]
    data: Annotated[int, Field(ge=1, le=1024, description="Number of replicas of the pipeline, each with its own data.")] = 1
    tensor: Annotated[
        int, Field(ge=1, le=64, description="GPUs that share each layer inside a stage; only 1 can be run yet.")
    ] = 1


class Schedule(Value):
    """The order in which a stage works through the micro-batches of a step."""

    name: Annotated[ScheduleName, Field(description="GPipe: all forwards, then all backwards. 1F1B: alternate, less memory.")] = (
        ScheduleName.ONE_F_ONE_B
    )
    micro_batches: Annotated[int, Field(ge=1, le=65536, description="Micro-batches in a step, for each replica.")]
    micro_batch_size: Annotated[int, Field(ge=1, le=65536, description="Sequences in a micro-batch.")] = 1


class Partition(Value):
    """Which layers stand on which stage; chosen by cost if unset."""

    layers: Annotated[
        tuple[Positive, ...] | None,
        Field(
            min_length=1,
            max_length=1024,
            description="Layers on each stage, first to last; embedding and head of a built-in model count as layers.",
        ),
    ] = None


class TopologyScope(Value):
    """How close ranks must or should be, as names of topology levels."""

    required: Annotated[str | None, Field(max_length=253, description="All within one domain of this level, or wait.")] = None
    preferred: Annotated[str | None, Field(max_length=253, description="Within one domain of this level where possible.")] = None


class Topology(Value):
    """What the cluster's network looks like, and how close the stages must be."""

    profile: Annotated[
        str,
        Field(max_length=63, description="Which node labels to read: a preset's name, or `auto` to detect it."),
    ] = "auto"
    levels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=316)], ...] | None,
        Field(min_length=1, max_length=8, description="Node label keys from coarse to fine; overrides `profile`."),
    ] = None
    pipeline: Annotated[TopologyScope, Field(description="Closeness of the stages of one replica.")] = TopologyScope()


class Training(Value):
    """What is trained, how far, and how."""

    steps: Annotated[int, Field(ge=1, le=1_000_000_000, description="Optimiser steps in all.")]
    optimizer: Annotated[str, Field(pattern="^AdamW$", max_length=32, description="The optimiser; AdamW.")] = "AdamW"
    learning_rate: Annotated[float, Field(gt=0, le=10, description="Peak learning rate.")] = 3e-4
    warmup_steps: Annotated[NonNegative, Field(description="Steps of linear warm-up; then cosine decay to a tenth.")] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Decoupled weight decay, on matrices only.")] = 0.1
    clip_norm: Annotated[
        float, Field(ge=0, le=1e6, description="Bound on the global gradient norm over all stages; 0 clips nothing.")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights and data order.")] = 0
    precision: Annotated[Precision, Field(description="fp32 or bf16 arithmetic; master weights are fp32.")] = Precision.FP32


class CheckpointVolume(Value):
    """Where checkpoints live: a volume that all stages share."""

    claim_name: Annotated[str, Field(min_length=1, max_length=253, description="A PersistentVolumeClaim of the namespace.")]


class Checkpoint(Value):
    """When and where the state is saved."""

    interval_steps: Annotated[int, Field(ge=0, le=1_000_000_000, description="Steps between checkpoints; 0: only at the end.")] = 100
    keep: Annotated[int, Field(ge=1, le=1000, description="Verified checkpoints kept; older ones are deleted.")] = 2
    path: Annotated[
        str | None,
        Field(
            max_length=1024,
            pattern=r"^[^/].*$",
            description="Folder below the volume, or below the run's output; `<namespace>/<job>` on a volume if unset.",
        ),
    ] = None
    volume: Annotated[
        CheckpointVolume | None,
        Field(description="A volume shared by all stages; without one, checkpoints do not outlive the pods."),
    ] = None


class FailureRule(Value):
    """What to do when a stage ends with one of these exit codes; the first rule that matches counts."""

    action: Annotated[RestartAction, Field(description="Fail: end the job. Restart: count a restart and go on.")]
    on_exit_codes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=255)], ...], Field(min_length=1, max_length=255, description="Exit codes.")
    ]


class FailurePolicy(Value):
    """How often a failed gang is restarted from its last checkpoint, and which failures are final."""

    max_restarts: Annotated[int, Field(ge=0, le=100_000, description="Restarts before the job fails.")] = 6
    rules: Annotated[tuple[FailureRule, ...], Field(max_length=32, description="Rules by exit code, first match counts.")] = ()


class StageTemplate(Value):
    """What is different for some stages."""

    stage: Annotated[int, Field(ge=0, le=1023, description="The stage that this changes.")]
    template: Annotated[
        dict[str, Any],
        Field(description="Merged over `spec.template` for this stage; containers are merged by name."),
    ]


class PipelineJobSpec(Value):
    """A model to train as a pipeline of stages, one pod a stage."""

    model: Annotated[Model, Field(description="The model: a built-in family by its sizes, or your own layers.")]
    data: Annotated[Data, Field(description="The training text.")]
    parallelism: Annotated[Parallelism, Field(description="How many ways the work is split.")]
    schedule: Annotated[Schedule, Field(description="The order in which a stage works through micro-batches.")]
    partition: Annotated[Partition, Field(description="Which layers stand on which stage; by cost if unset.")] = Partition()
    topology: Annotated[Topology, Field(description="The network's shape and how close the stages must be.")] = Topology()
    training: Annotated[Training, Field(description="What is trained, how far, and how.")]
    checkpoint: Annotated[Checkpoint, Field(description="When and where the state is saved.")] = Checkpoint()
    device: Annotated[Device, Field(description="gpu: `tensor` GPUs a stage over NCCL. cpu: processors over gloo.")] = Device.GPU
    gpu_resource: Annotated[
        str, Field(min_length=1, max_length=253, description="The extended resource that a GPU is counted by.")
    ] = "nvidia.com/gpu"
    template: Annotated[
        dict[str, Any] | None,
        Field(description="Pod template for every stage; the container named `trainer` is completed by the operator."),
    ] = None
    stage_templates: Annotated[
        tuple[StageTemplate, ...], Field(max_length=1024, description="Changes to the template for single stages.")
    ] = ()
    failure_policy: Annotated[FailurePolicy, Field(description="Which failures are retried, and how often.")] = FailurePolicy()
    active_deadline_seconds: Annotated[
        int | None, Field(ge=1, description="Seconds the job may be active, from its first admission, before it fails.")
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None, Field(ge=0, description="Seconds after which a finished job is deleted; never if unset.")
    ] = None
    suspend: Annotated[bool, Field(description="true: checkpoint, stop and release everything; false: go on from there.")] = False
