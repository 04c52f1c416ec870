"""What the operator says of a PipelineJob: the types of its `status`. The CRD is generated from them, like the spec.

Numbers with fractions stand as strings, ready to read in a column (`"2.431"`, `"27.3%"`):
Kubernetes' convention for a status is no floats. Machines that want numbers ask Prometheus.
"""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.reported.conditions import Condition, State
from pipelinejob.spec.reported.fields import Count, OpenName, Short, Time
from pipelinejob.spec.reported.plan_summary import PlacementSummary, PlanSummary
from pipelinejob.spec.reported.recovery_status import RecoveryStatus
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.reported.waiting import AskedJob, RefusedNode


class PipelineJobStatus(Value):
    """What the operator last saw of the job; written seldom, so a minute old at worst."""

    observed_generation: Annotated[int | None, Field(ge=0, description="Generation of the spec that this answers.")] = (
        None
    )
    state: Annotated[State | None, OpenName, Field(description="One word for people, derived from the conditions.")] = (
        None
    )
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
            description="What is true of the job; `Succeeded` is the summary.",
        ),
    ] = ()
    attempt: Annotated[
        Count,
        Field(description="Number of the present gang; stored before its first pod exists, to tell older pods apart."),
    ] = 0
    restarts: Annotated[Count, Field(description="Restarts counted against `spec.failurePolicy.maxRestarts`.")] = 0
    restart_times: Annotated[
        tuple[Time, ...] | None,
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="When those were that count now, beside `spec.failurePolicy.restartWindowSeconds`.",
        ),
    ] = None
    disruptions: Annotated[
        Count, Field(description="Restarts because a node or pod was taken away; they count against no limit.")
    ] = 0
    disruptions_in_a_row: Annotated[
        Count, Field(description="Those since the gang last ran for long; too many of them end the job.")
    ] = 0
    recovery: Annotated[
        RecoveryStatus | None, Field(description="What was recovered in place; unset where `spec.recovery` is off.")
    ] = None
    not_before: Annotated[Time | None, Field(description="The present attempt waits until then, after a failure.")] = (
        None
    )
    released_time: Annotated[
        Time | None, Field(description="When the gang of the present attempt was whole and let go to its nodes.")
    ] = None
    start_seconds: Annotated[
        Short | None,
        Field(
            description="How long the last gang took from its release to its first step; where "
            "`spec.recovery.stragglers` weighs it."
        ),
    ] = None
    start_time: Annotated[Time | None, Field(description="When the job was admitted first.")] = None
    completion_time: Annotated[Time | None, Field(description="When the job ended.")] = None
    chosen: Annotated[
        Chosen | None,
        Field(
            description="What was chosen for what the spec leaves open; stored before the first pod exists, and kept "
            "over restarts."
        ),
    ] = None
    preempts: Annotated[
        tuple[AskedJob, ...],
        Field(
            max_length=256,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="While it waits: jobs of lower priority that it asked to write a checkpoint and make way.",
        ),
    ] = ()
    waits_for: Annotated[
        tuple[Short, ...],
        Field(
            max_length=256,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="While it waits: running jobs whose room is kept for it, so that no job that passes it takes "
            "that; `team-a/gpt`.",
        ),
    ] = ()
    waiting_since: Annotated[
        Time | None,
        Field(
            description="While it waits in line for room: since when. Who began to run before that is not among those "
            "who went past it."
        ),
    ] = None
    resumed_time: Annotated[
        Time | None,
        Field(
            description="When it was last resumed: from then on its age in line counts, as from its creation before."
        ),
    ] = None
    refused_nodes: Annotated[
        tuple[RefusedNode, ...],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["node"]},
            description="Nodes that refused one of its pods of late; each is left out until the time given, 2 minutes "
            "at first and up to 64 where it refuses again and again.",
        ),
    ] = ()
    preemptions: Annotated[
        Count, Field(description="How often it made way for a job of higher priority; counts against no limit.")
    ] = 0
    preempted_by: Annotated[
        Short | None, Field(description="The job that it made way for last, until it runs again: `team-a/urgent`.")
    ] = None
    plan: Annotated[PlanSummary | None, Field(description="What was planned, and what is expected of it.")] = None
    stages: Annotated[
        tuple[StageStatus, ...],
        Field(
            max_length=2048,
            # As a map, who wrote which field of which entry would be kept, too: as much again as
            # the entries.
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="Every rank: where it runs and how it does.",
        ),
    ] = ()
    stages_ready: Annotated[Short | None, Field(description="Ranks that train, of all: `4/4`.")] = None
    step: Annotated[Count | None, Field(description="Optimiser steps completed.")] = None
    steps: Annotated[Count | None, Field(description="Optimiser steps in all, from the spec.")] = None
    replicas: Annotated[
        Count | None, Field(description="Replicas of the pipeline as the job was placed last; the scale subresource's.")
    ] = None
    selector: Annotated[
        Short | None, Field(description="The label selector of the job's pods; the scale subresource's.")
    ] = None
    progress: Annotated[Short | None, Field(description="Share of the steps completed, in percent.")] = None
    loss: Annotated[Short | None, Field(description="Loss of the last step seen, in nats a token.")] = None
    bubble: Annotated[Short | None, Field(description="Measured bubble of late, the mean over stages.")] = None
    tokens_per_second: Annotated[Short | None, Field(description="Measured tokens a second of the whole job.")] = None
    last_checkpoint_step: Annotated[
        Count | None, Field(description="Step of the newest verified checkpoint; a restart goes on from there.")
    ] = None
    skipped_steps: Annotated[
        Count | None,
        Field(description="Steps of the present attempt that were skipped as not finite; unset: none was seen."),
    ] = None
    roll_backs: Annotated[
        Count | None,
        Field(description="Returns to a checkpoint of the present attempt, after steps that were not finite."),
    ] = None
    failed_checkpoints: Annotated[
        Count | None,
        Field(description="Checkpoints of the present attempt that could not be written, and were gone on without."),
    ] = None
    nodes: Annotated[Short | None, Field(description="The nodes in use, in short: `4: node-a, node-b, ...`.")] = None
    crossings: Annotated[
        dict[Short, Count] | None,
        Field(description="Neighbouring stages parted at each level of the topology, coarse to fine."),
    ] = None
    placement: Annotated[
        PlacementSummary | None, Field(description="How good the place is, and what it leaves for others.")
    ] = None
    progress_time: Annotated[Time | None, Field(description="When these measurements were written last.")] = None
    left_out: Annotated[
        str | None,
        Field(max_length=1024, description="What is left out here because the status would be too large to be stored."),
    ] = None


def percent(ratio: float, *, digits: int = 1) -> str:
    """Write a ratio for a status: 0.273 is `27.3%`."""
    return f"{ratio:.{digits}%}"


def decimal(number: float) -> str:
    """Write a number for a status with four significant digits, never in scientific form where a person would not.

    2.43123 is `2.431`, 18250.4 is `18250`.
    """
    digits = 0 if abs(number) >= 1000 else 3 if abs(number) >= 1 else 4  # noqa: PLR2004  # plain thresholds of a display
    return f"{number:.{digits}f}"
