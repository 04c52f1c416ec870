"""What a user writes of the training itself: how far and how, when it is evaluated, where its state is saved."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.rules import Rule, ruled, rules_extra, unchanging
from pipelinejob.values import Value


class Precision(StrEnum):
    """Arithmetic of forward and backward; parameters and optimiser state stay fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


class Optimizer(StrEnum):
    """How parameters follow gradients."""

    ADAMW = "AdamW"


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
