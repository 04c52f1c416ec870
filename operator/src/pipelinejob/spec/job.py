"""What a user writes: the types of a PipelineJob's `spec`.

The CRD is generated from these types (`crd.py`), field descriptions included, so the API server,
`kubectl explain` and the command line speak of the same thing. What one field can say alone stands
here as a constraint; what needs two fields stands here as a CEL rule that the API server and the
command line both evaluate; what a schema cannot see is in `check.py`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipelinejob.base.values import OPEN, Value
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.expert_parallel import EXPERT_RULES
from pipelinejob.spec.families.built_in import LAYERS, LAYERS_KNOWN, GptModel
from pipelinejob.spec.families.decoder import DecoderModel, Experts, RopeScaling, RopeScalingKind
from pipelinejob.spec.lora import Lora
from pipelinejob.spec.network.objective import Objective
from pipelinejob.spec.network.topology import Topology, TopologyScope
from pipelinejob.spec.optimization import Optimizer
from pipelinejob.spec.rules import (
    IS_ROLLED,
    RESHAPING_RULES,
    RESIZING_RULE,
    Reason,
    Rule,
    changing_only_while_suspended,
    ruled,
    rules_extra,
    unchanging,
)
from pipelinejob.spec.running.failure_policy import FailurePolicy, FailureRule, RestartAction
from pipelinejob.spec.running.recovery import RECOVERY_RULES, Recovery
from pipelinejob.spec.running.scheduling import BINDING_RULE, LATE_RULE, MIN_REPLICAS_RULES, Binding, Scheduling
from pipelinejob.spec.schedules.rules import SCHEDULE_RULES
from pipelinejob.spec.schedules.schedule import ScheduleSpec
from pipelinejob.spec.serving import SERVING_RULES, Mode, Serving, while_training, with_neutral_training
from pipelinejob.spec.sharding import SHARDING_RULES, Sharding
from pipelinejob.spec.stages import Partition, PodTemplate, StageTemplate
from pipelinejob.spec.training import (
    DATA_RULES,
    Checkpoint,
    CheckpointVolume,
    Evaluation,
    OnDataChange,
    Precision,
    Training,
)
from pipelinejob.spec.workload import (
    WORKLOAD_RULES,
    Corpus,
    Data,
    HuggingFaceModel,
    Model,
    Packing,
    TokenSource,
    Weights,
)

# Many parts stand in files of their own, but belong to the spec like the rest.
__all__ = [
    "MAX_RANKS",
    "Binding",
    "Checkpoint",
    "CheckpointVolume",
    "Corpus",
    "CostsReference",
    "Data",
    "DecoderModel",
    "Device",
    "Evaluation",
    "Experts",
    "FailurePolicy",
    "FailureRule",
    "GptModel",
    "HuggingFaceModel",
    "Lora",
    "Mode",
    "Model",
    "Objective",
    "OnDataChange",
    "Optimizer",
    "Packing",
    "Parallelism",
    "Partition",
    "PipelineJobSpec",
    "Precision",
    "Recovery",
    "RestartAction",
    "RopeScaling",
    "RopeScalingKind",
    "ScheduleName",
    "ScheduleSpec",
    "Scheduling",
    "Serving",
    "Sharding",
    "StageTemplate",
    "TokenSource",
    "Topology",
    "TopologyScope",
    "Training",
    "Weights",
]

SECONDS_LIMIT = 2**31 - 1
MAX_RANKS = 2048  # more would not fit into one object's status


def _given(field: str) -> str:
    return f"(has(self.{field}) ? self.{field} : 1)"


_GIVEN_RANKS = f"{_given('pipeline')} * {_given('data')} * {_given('tensor')}"


class Device(StrEnum):
    """What a stage computes on."""

    GPU = "gpu"
    CPU = "cpu"


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
        Rule(
            rule=f"{_given('data')} % self.expert == 0",
            message="data must be a multiple of expert: each so many replicas divide the experts among them",
            says="%d replicas make no whole groups of %d that divide experts; use a divisor of %d for expert",
            values=(_given("data"), "self.expert", _given("data")),
            field=".expert",
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
            description="Number of replicas of the pipeline, each with its own data, or, with mode Serve, its own "
            "requests; if unset, chosen beside `gpus`, 1 without.",
        ),
    ] = OPEN
    tensor: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="GPUs that share each layer inside a stage; if unset, chosen beside `gpus`, 1 without. "
            "More than 1 can be run of built-in models and of huggingFace.",
        ),
    ] = OPEN

    expert: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Replicas of a stage that divide the experts of a `decoder` among them; tokens travel to their "
            "experts' replicas and back. A divisor of `data` and of the number of experts.",
        ),
    ] = 1
    sharding: Annotated[
        Sharding,
        Field(
            description="What replicas of a stage divide among them: none, the optimizer's state (ZeRO-1), or full, "
            "parameters too (FSDP), which passes gather layer by layer; gradients are summed once a step."
        ),
    ] = Sharding.NONE
    sequence_parallel: Annotated[
        bool,
        Field(
            description="The GPUs of a stage divide the tokens, too, between matrices: each keeps, and passes on to "
            "the next stage, its part of the stream alone. More than 1 `tensor` of built-in models."
        ),
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _of_one(cls, value: Any) -> Any:
        """Let what is unset be 1 where nothing is to be chosen."""
        if isinstance(value, Mapping) and value.get("gpus") is None:
            return {"data": 1, "tensor": 1, **{key: each for key, each in value.items() if each is not None}}
        return value

    @property
    def is_open(self) -> bool:
        """Whether a degree is still to be chosen."""
        return self.pipeline is None or self.data is None or self.tensor is None


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
        *while_training(SCHEDULE_RULES),
        *while_training(SHARDING_RULES),
        *while_training(EXPERT_RULES),
        LATE_RULE,
        BINDING_RULE,
        *while_training(MIN_REPLICAS_RULES),
        *while_training(RECOVERY_RULES),
        unchanging("model", why="the checkpoints hold this one", unless=IS_ROLLED),
        *while_training(DATA_RULES),
        *while_training(WORKLOAD_RULES),
        *SERVING_RULES,
        RESIZING_RULE,
        *RESHAPING_RULES,
        *map(
            changing_only_while_suspended,
            (
                "topology",
                "serving",
                "training",
                "evaluation",
                "checkpoint",
                "recovery",
                "device",
                "gpuResource",
            ),
        ),
    )

    model: Annotated[
        Model, Field(description="The model: a built-in family by its sizes, your own layers, or a Hugging Face model.")
    ]
    mode: Annotated[
        Mode,
        Field(
            description="Train: the model is trained. Serve: it answers requests over HTTP, until deleted. Batch: it "
            "answers those of a file, and ends."
        ),
    ] = Mode.TRAIN
    data: Annotated[Data, Field(description="What is trained on; compulsory with mode Train.")] = OPEN
    parallelism: Annotated[Parallelism, Field(description="How many ways the work is split.")]
    schedule: Annotated[
        ScheduleSpec,
        Field(description="The order in which a stage works through micro-batches; compulsory with mode Train."),
    ] = OPEN
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
    training: Annotated[
        Training, Field(description="What is trained, how far, and how; compulsory with mode Train.")
    ] = OPEN
    serving: Annotated[Serving | None, Field(description="How the model is served, with modes Serve and Batch.")] = None
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
            "A change counts from the next restart; with mode Serve at once, chain by chain."
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
    recovery: Annotated[Recovery, Field(description="Whether a lost stage alone is replaced.")] = Recovery()
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

    @model_validator(mode="before")
    @classmethod
    def _planned_as_training(cls, value: Any) -> Any:
        return with_neutral_training(value)

    @property
    def is_open(self) -> bool:
        """Whether degrees or micro-batches are still to be chosen (`search.search`, then `chosen.resolved`)."""
        return self.parallelism.is_open or self.schedule.is_open
