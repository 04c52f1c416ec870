"""What a user writes: the types of a PipelineJob's `spec`.

The CRD is generated from these types (`crd.py`), field descriptions included, so the API server, `kubectl explain` and
the command line speak of the same thing. What one field can say alone stands here as a constraint; what needs two
fields stands here as a CEL rule that the API server and the command line both evaluate; what a schema cannot see is in
`check.py`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipelinejob.objective import Objective
from pipelinejob.rules import Reason, Rule, changing_only_while_suspended, ruled, rules_extra, unchanging
from pipelinejob.schedule_spec import LAYERS, LAYERS_KNOWN, SCHEDULE_RULES, ScheduleSpec
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.scheduling import BINDING_RULE, LATE_RULE, Binding, Scheduling
from pipelinejob.topology_profile import MissingLabels
from pipelinejob.values import OPEN, Value
from pipelinejob.workload import Corpus, Data, GptModel, Model

# Model, data and schedule stand in files of their own, but belong to the spec like the rest.
__all__ = [
    "MAX_RANKS",
    "Binding",
    "Checkpoint",
    "CheckpointVolume",
    "Corpus",
    "CostsReference",
    "Data",
    "Device",
    "Evaluation",
    "FailurePolicy",
    "FailureRule",
    "GptModel",
    "Model",
    "Objective",
    "Optimizer",
    "Parallelism",
    "Partition",
    "PipelineJobSpec",
    "Precision",
    "RestartAction",
    "ScheduleName",
    "ScheduleSpec",
    "Scheduling",
    "StageTemplate",
    "Topology",
    "TopologyScope",
    "Training",
]

LayerCount = Annotated[int, Field(ge=1, le=4096)]
PodTemplate = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]

SECONDS_LIMIT = 2**31 - 1
MAX_RANKS = 2048  # more would not fit into one object's status


def _given(field: str) -> str:
    return f"(has(self.{field}) ? self.{field} : 1)"


_GIVEN_RANKS = f"{_given('pipeline')} * {_given('data')} * {_given('tensor')}"
_NODE = "['node', 'kubernetes.io/hostname']"  # a level below all others, which need not be listed


class Precision(StrEnum):
    """Arithmetic of forward and backward; parameters and optimiser state stay fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


class Optimizer(StrEnum):
    """How parameters follow gradients."""

    ADAMW = "AdamW"


class Device(StrEnum):
    """What a stage computes on."""

    GPU = "gpu"
    CPU = "cpu"


class RestartAction(StrEnum):
    """What a failure rule does."""

    FAIL = "Fail"
    RESTART = "Restart"


class Parallelism(Value):
    """How many ways the work is split; ranks = pipeline * data * tensor. What is unset beside `gpus` is chosen."""

    model_config = ruled(
        Rule(
            rule="has(self.gpus) || has(self.pipeline)",
            message="pipeline is compulsory without gpus; give the number of stages, or gpus to have it chosen",
            field=".pipeline",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule=f"!has(self.gpus) || {_GIVEN_RANKS} <= self.gpus",
            message="gpus must be at least pipeline * data * tensor, of which each is 1 or more",
            says="%d GPUs are too few for the degrees given, which take %d at least; use more, or smaller degrees",
            values=("self.gpus", _GIVEN_RANKS),
            field=".gpus",
        ),
        Rule(
            rule=f"{_given('pipeline')} * {_given('data')} <= {MAX_RANKS}",
            message=f"pipeline * data must be at most {MAX_RANKS} pods",
            says=f"%d stages times %d replicas are more pods than the {MAX_RANKS} a job may have; use fewer",
            values=(_given("pipeline"), _given("data")),
        ),
    )

    gpus: Annotated[
        int | None,
        Field(
            ge=1,
            le=2**20,
            description="GPUs, or processors where `device` is cpu, that may be used at most; degrees that are unset "
            "are chosen, so that a step is shortest.",
        ),
    ] = None
    pipeline: Annotated[
        int, Field(ge=1, le=1024, description="Number of pipeline stages, one pod each; chosen if unset beside `gpus`.")
    ] = OPEN
    data: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Number of replicas of the pipeline, each with its own data; if unset, chosen beside `gpus`, "
            "1 without.",
        ),
    ] = OPEN
    tensor: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="GPUs that share each layer inside a stage; if unset, chosen beside `gpus`, 1 without. "
            "More than 1 can be planned, but not be run yet.",
        ),
    ] = OPEN

    @model_validator(mode="before")
    @classmethod
    def _of_one(cls, value: Any) -> Any:
        """Let what is unset be 1 where nothing is to be chosen."""
        if isinstance(value, Mapping) and value.get("gpus") is None:
            return {"data": 1, "tensor": 1, **{key: each for key, each in value.items() if each is not None}}
        return value

    @property
    def is_open(self) -> bool:
        """Say whether a degree is still to be chosen."""
        return self.pipeline is None or self.data is None or self.tensor is None


class Partition(Value):
    """Which layers stand on which stage; chosen by cost if unset."""

    layers: Annotated[
        tuple[LayerCount, ...] | None,
        Field(
            min_length=1,
            max_length=4096,
            description="Layers of each stretch, first to last: one a stage, or, where the schedule gives a stage "
            "several, pipeline * virtualStages. Embedding and head of a built-in model count as layers.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None


class CostsReference(Value):
    """Where measured costs of the layers are."""

    config_map: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            description="A ConfigMap of the job's namespace, as `pipelinejob profile --config-map` writes it.",
        ),
    ]
    key: Annotated[str, Field(min_length=1, max_length=253, description="Its entry that holds the profile.")] = (
        "profile.json"
    )


class TopologyScope(Value):
    """How close ranks must or should be, as names of topology levels."""

    model_config = ruled(
        Rule(
            rule="!has(self.required) || !has(self.preferred) || self.required != self.preferred",
            message="preferred must differ from required, which holds anyhow; name a narrower level or leave it out",
            field=".preferred",
        ),
    )

    required: Annotated[
        str | None, Field(min_length=1, max_length=316, description="All within one domain of this level, or wait.")
    ] = None
    preferred: Annotated[
        str | None, Field(min_length=1, max_length=316, description="Within one domain of this level where possible.")
    ] = None


class Topology(Value):
    """What the cluster's network looks like, and how close the stages must be."""

    model_config = ruled(
        Rule(
            rule=f"!has(self.levels) || !has(self.pipeline.required) || self.pipeline.required in self.levels "
            f"|| self.pipeline.required in {_NODE}",
            message="pipeline.required must be one of levels, or node",
            says='"%s" is not among levels; name one of them, or node, or add it',
            values=("self.pipeline.required",),
            field=".pipeline.required",
        ),
        Rule(
            rule=f"!has(self.levels) || !has(self.pipeline.preferred) || self.pipeline.preferred in self.levels "
            f"|| self.pipeline.preferred in {_NODE}",
            message="pipeline.preferred must be one of levels, or node",
            says='"%s" is not among levels; name one of them, or node, or add it',
            values=("self.pipeline.preferred",),
            field=".pipeline.preferred",
        ),
    )

    profile: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            description="Which node labels to read: a TopologyProfile's or a preset's name, or `auto` to detect it.",
        ),
    ] = "auto"
    levels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=316)], ...] | None,
        Field(
            min_length=1,
            max_length=8,
            description="Node label keys from coarse to fine, each once; overrides `profile`.",
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                **rules_extra(
                    Rule(
                        rule="self.all(key, self.exists_one(other, other == key))",
                        message="a node label key stands here twice; keep one of them",
                    ),
                    Rule(
                        rule="self.all(key, key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?"
                        "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))",
                        message="every level must be a node label key, as in topology.kubernetes.io/zone",
                    ),
                ),
            },
        ),
    ] = None
    missing_labels: Annotated[
        MissingLabels | None,
        Field(
            description="What a node counts as that lacks a level's label. Separate, as if unset: a domain of its own. "
            "Together: all such nodes are one domain. Exclude: it takes no stage. Overrides the TopologyProfile's."
        ),
    ] = None
    pipeline: Annotated[TopologyScope, Field(description="Closeness of the stages of one replica.")] = TopologyScope()
    objective: Annotated[
        Objective,
        Field(
            description="What is weighed against a short step. auto: the most room for the next job within `threshold` "
            "of the shortest step. chain: the shortest step. pack: the tightest domains that hold the job."
        ),
    ] = Objective.AUTO
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of a step that may be given up for more room, where `objective` is auto; 0.01 is 1 %.",
        ),
    ] = 0.01


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
        unchanging("seed", why="the data order that was trained on so far follows from it"),
    )

    steps: Annotated[int, Field(ge=1, le=1_000_000_000, description="Optimiser steps in all.")]
    optimizer: Annotated[Optimizer, Field(description="The optimiser; AdamW.")] = Optimizer.ADAMW
    learning_rate: Annotated[float, Field(gt=0, le=10, description="Peak learning rate.")] = 3e-4
    warmup_steps: Annotated[
        int,
        Field(ge=0, le=1_000_000_000, description="Steps of linear warm-up; then cosine decay to a tenth."),
    ] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Decoupled weight decay, on matrices only.")] = 0.1
    clip_norm: Annotated[
        float, Field(ge=0, le=1e6, description="Bound on the global gradient norm over all stages; 0 clips nothing.")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights and data order.")] = 0
    precision: Annotated[Precision, Field(description="fp32 or bf16 arithmetic; master weights are fp32.")] = (
        Precision.FP32
    )
    preflight: Annotated[
        bool,
        Field(
            description="Before the first step, compare one step's gradients of a shrunk model with a single "
            "process's, and fail if they differ."
        ),
    ] = False


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
            "if unset, the last twentieth of the training text, which is then not trained on.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None


class CheckpointVolume(Value):
    """Where checkpoints live: a volume that all stages share."""

    claim_name: Annotated[
        str, Field(min_length=1, max_length=253, description="A PersistentVolumeClaim of the job's namespace.")
    ]


class Checkpoint(Value):
    """When and where the state is saved."""

    model_config = ruled(
        unchanging("path", why="the state would be left behind in the old folder"),
        unchanging("volume", why="the state would be left behind on the old volume"),
    )

    interval_steps: Annotated[
        int, Field(ge=0, le=1_000_000_000, description="Steps between checkpoints; 0: only at the end.")
    ] = 100
    keep: Annotated[int, Field(ge=1, le=1000, description="Verified checkpoints kept; older ones are deleted.")] = 2
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
    volume: Annotated[
        CheckpointVolume | None,
        Field(description="A volume shared by all stages; without one, checkpoints do not outlive the pods."),
    ] = None


class FailureRule(Value):
    """What to do when a stage ends with one of these exit codes; the first rule that matches counts."""

    action: Annotated[RestartAction, Field(description="Fail: end the job. Restart: count a restart and go on.")]
    on_exit_codes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=255)], ...],
        Field(
            min_length=1,
            max_length=255,
            description="Exit codes, 1 to 255.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ]


class FailurePolicy(Value):
    """How often a failed gang is restarted from its last checkpoint, and which failures are final."""

    max_restarts: Annotated[int, Field(ge=0, le=100_000, description="Restarts before the job fails.")] = 6
    rules: Annotated[
        tuple[FailureRule, ...],
        Field(
            max_length=32,
            description="Rules by exit code, first match counts.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()


class StageTemplate(Value):
    """What is different for some stages."""

    stage: Annotated[int, Field(ge=0, le=1023, description="The stage that this changes, counted from 0.")]
    template: Annotated[
        PodTemplate,
        Field(description="Merged over `spec.template` for this stage; containers are merged by name."),
    ]


class PipelineJobSpec(Value):
    """A model to train as a pipeline of stages, one pod a stage."""

    model_config = ruled(
        Rule(
            rule=f"!has(self.parallelism.pipeline) || !{LAYERS_KNOWN} || self.parallelism.pipeline <= {LAYERS}",
            message="more stages than layers; use at most one stage for each layer "
            "(embedding and head of a built-in model count as layers)",
            says="%d stages cannot share %d layers; use at most %d",
            values=("self.parallelism.pipeline", LAYERS, LAYERS),
            field=".parallelism.pipeline",
        ),
        Rule(
            rule=f"!has(self.partition.layers) || !{LAYERS_KNOWN} || self.partition.layers.sum() == {LAYERS}",
            message="the entries of partition.layers must add up to the model's layers "
            "(embedding and head of a built-in model count as layers)",
            says="the entries add up to %d, the model has %d layers (a built-in one with embedding and head); "
            "make them equal, or leave partition out to have it chosen",
            values=("self.partition.layers.sum()", LAYERS),
            field=".partition.layers",
        ),
        Rule(
            rule="!has(self.parallelism.pipeline)"
            " || self.stageTemplates.all(item, item.stage < self.parallelism.pipeline)",
            message="stageTemplates names a stage that does not exist; stages count from 0 to parallelism.pipeline - 1",
            says="a stage is named that does not exist; the stages are 0 to %d",
            values=("self.parallelism.pipeline - 1",),
            field=".stageTemplates",
        ),
        *SCHEDULE_RULES,
        LATE_RULE,
        BINDING_RULE,
        unchanging("model", why="the checkpoints hold this one"),
        unchanging("data", why="the position in it is part of the checkpoints"),
        *map(
            changing_only_while_suspended,
            (
                "parallelism",
                "schedule",
                "partition",
                "topology",
                "training",
                "evaluation",
                "checkpoint",
                "device",
                "gpuResource",
            ),
        ),
    )

    model: Annotated[Model, Field(description="The model: a built-in family by its sizes, or your own layers.")]
    data: Annotated[Data, Field(description="The training text.")]
    parallelism: Annotated[Parallelism, Field(description="How many ways the work is split.")]
    schedule: Annotated[ScheduleSpec, Field(description="The order in which a stage works through micro-batches.")]
    partition: Annotated[Partition, Field(description="Which layers stand on which stage; by cost if unset.")] = (
        Partition()
    )
    costs: Annotated[
        CostsReference | None,
        Field(
            description="Measured costs of the layers, to plan with; derived from the model's sizes if unset. "
            "A change counts from the next plan."
        ),
    ] = None
    topology: Annotated[Topology, Field(description="The network's shape and how close the stages must be.")] = (
        Topology()
    )
    scheduling: Annotated[Scheduling, Field(description="Whose turn it is, and who chooses the nodes.")] = Scheduling()
    training: Annotated[Training, Field(description="What is trained, how far, and how.")]
    evaluation: Annotated[
        Evaluation | None, Field(description="When and on what the model is evaluated; never if unset.")
    ] = None
    checkpoint: Annotated[Checkpoint, Field(description="When and where the state is saved.")] = Checkpoint()
    device: Annotated[Device, Field(description="gpu: `tensor` GPUs a stage over NCCL. cpu: processors over gloo.")] = (
        Device.GPU
    )
    gpu_resource: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            description="The extended resource that a GPU is counted by.",
            json_schema_extra=rules_extra(
                Rule(
                    rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
                    message="must be an extended resource, as in nvidia.com/gpu",
                    says='"%s" is no extended resource; write domain/name, as in nvidia.com/gpu',
                    values=("self",),
                )
            ),
        ),
    ] = "nvidia.com/gpu"
    template: Annotated[
        PodTemplate | None,
        Field(
            description="Pod template for every stage; the operator completes its container `trainer`. "
            "A change counts from the next restart."
        ),
    ] = None
    stage_templates: Annotated[
        tuple[StageTemplate, ...],
        Field(
            max_length=1024,
            description="Changes to the template for single stages. A change counts from the next restart.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["stage"]},
        ),
    ] = ()
    failure_policy: Annotated[FailurePolicy, Field(description="Which failures are retried, and how often.")] = (
        FailurePolicy()
    )
    active_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=SECONDS_LIMIT,
            description="Seconds the job may be active, from its first admission, before it fails.",
        ),
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(ge=0, le=SECONDS_LIMIT, description="Seconds after which a finished job is deleted; never if unset."),
    ] = None
    suspend: Annotated[
        bool, Field(description="true: checkpoint, stop and release everything; false: go on from there.")
    ] = False

    @property
    def is_open(self) -> bool:
        """Say whether degrees or micro-batches are still to be chosen (`search.search`, then `chosen.resolved`)."""
        return self.parallelism.is_open or self.schedule.is_open
