"""What the operator says of a PipelineJob: the types of its `status`. The CRD is generated from them, like the spec.

Numbers with fractions stand as strings, ready to read in a column (`"2.431"`, `"27.3%"`): Kubernetes' convention for a
status is no floats. Machines that want numbers ask Prometheus.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, WithJsonSchema

from pipelinejob.base.values import Value
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.resizing import Resizing
from pipelinejob.spec.sparing import Spare

Count = Annotated[int, Field(ge=0)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
# In the CRD any word is let through: a newer operator may know more of them than the CRD that is installed.
OpenName = WithJsonSchema({"type": "string", "maxLength": 253})
Short = Annotated[str, Field(max_length=253)]


class ConditionType(StrEnum):
    """What can be true of a job. All but the last stand in the status from its first write."""

    SUCCEEDED = "Succeeded"  # the summary: Unknown while active, then True or False for ever
    ADMITTED = "Admitted"  # the gang may run: it holds what it needs
    PLACED = "Placed"  # every rank has a node
    READY = "Ready"  # every stage is up and at work
    SUSPENDED = "Suspended"  # spec.suspend is honoured: nothing of the job runs
    DEGRADED = "Degraded"  # it runs, but worse than planned (a straggler, a wider placement than preferred)
    STALLED = "Stalled"  # nothing moves and a person has to act
    RESIZED = "Resized"  # it has the replicas that its spec asks for; there once they were changed while it ran


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class State(StrEnum):
    """One word for a column. Derived from the conditions, for people; programs read the conditions."""

    PENDING = "Pending"  # seen, not planned yet
    WAITING = "Waiting"  # planned, does not fit now
    STARTING = "Starting"  # placed, stages are coming up
    TRAINING = "Training"
    SERVING = "Serving"  # all stages are up, and answer a service's requests or a batch's
    DEGRADED = "Degraded"  # at work, worse than planned
    RESTARTING = "Restarting"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


UP = frozenset({State.TRAINING, State.SERVING, State.DEGRADED})  # all stages are there


class Condition(Value):
    """One observation of the job, in Kubernetes' own form."""

    type: Annotated[ConditionType, OpenName, Field(description="What is observed.")]
    status: Annotated[ConditionStatus, Field(description="Whether it holds.")]
    observed_generation: Annotated[int | None, Field(ge=0, description="Generation of the spec that was seen.")] = None
    last_transition_time: Annotated[Time, Field(description="When `status` changed last.")]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            description="Why, as one CamelCase word.",
        ),
    ]
    message: Annotated[str, Field(max_length=32768, description="Why, and what to do about it.")] = ""


class PlannedStage(Value):
    """One stage as planned, in short."""

    stage: Annotated[Count, Field(description="The stage's number, from 0.")]
    layers: Annotated[Short, Field(description="First and last layer it holds, as in `0-4`.")]
    memory_bytes: Annotated[
        Count | None,
        Field(description="Predicted peak memory of its device, in bytes; not for layers of unknown cost."),
    ] = None
    bubble: Annotated[Short | None, Field(description="Predicted share of time that it waits.")] = None
    recompute: Annotated[
        Short | None,
        Field(description="What it computes again: `selective, 3 of 8 layers` (the first), or `full`; unset: none."),
    ] = None


class ServedSummary(Value):
    """What a job that serves is predicted to give. Seconds and rates are not known for layers of unknown cost."""

    requests: Annotated[Count, Field(description="Requests at once.")]
    tokens: Annotated[Count, Field(description="Tokens of each prompt, and of each answer.")]
    first_token_seconds: Annotated[Short | None, Field(description="Mean seconds to the first token.")] = None
    per_token_seconds: Annotated[Short | None, Field(description="Mean seconds from a token to the next.")] = None
    tokens_per_second: Annotated[Short | None, Field(description="Tokens a second of all requests.")] = None
    utilization: Annotated[Short, Field(description="Share of the time that stages compute, their mean.")]


class PlanSummary(Value):
    """The plan in short; all of it is in the config map `<job>-plan`."""

    stages: Annotated[
        tuple[PlannedStage, ...],
        Field(
            max_length=1024,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},  # see `stages` of the status
            description="The layers on each stage.",
        ),
    ]
    step_seconds: Annotated[
        Short | None, Field(description="Predicted seconds of one step; not for layers of unknown cost.")
    ] = None
    bubble: Annotated[Short | None, Field(description="Predicted bubble of training, the mean over stages.")] = None
    tokens_per_second: Annotated[
        Short | None, Field(description="Predicted tokens a second of the whole job; not for layers of unknown cost.")
    ] = None
    source: Annotated[
        Short,
        Field(
            description="Where predictions come from: `profiled` on the device, `analytic`, counted, or `equal`: "
            "nothing is known of the layers but their number, so only ratios are predicted."
        ),
    ]
    protection: Annotated[
        Short | None,
        Field(description="What recovery in place costs while nothing fails, and a lost stage then; unset: it is off."),
    ] = None
    serving: Annotated[
        tuple[ServedSummary, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="Where it serves: what it will give at several loads, the smallest first.",
        ),
    ] = ()


class PlacementSummary(Value):
    """How good the gang's place is. What it costs is predicted; room is as it was when the place was chosen."""

    crossed: Annotated[
        Short, Field(description="Neighbouring stages parted by level, coarse to fine: `leaf 1, node 7`, or `none`.")
    ]
    penalty: Annotated[
        Short | None,
        Field(
            description="Predicted share of a step that this costs, against all stages on the closest links; unset "
            "where nothing is known of layers or links."
        ),
    ] = None
    least_penalty: Annotated[
        Short | None, Field(description="At least so much any place would have cost with the nodes that were free.")
    ] = None
    room_left: Annotated[
        dict[Short, Count] | None,
        Field(description="Stages like these that still fit into one domain of each level, coarse to fine."),
    ] = None


class StageStatus(Value):
    """One rank: stage `stage` of replica `replica`."""

    replica: Annotated[Count, Field(description="The replica's number, from 0.")]
    stage: Annotated[Count, Field(description="The stage's number, from 0.")]
    pod: Annotated[Short, Field(description="Name of its pod.")]
    spare: Annotated[
        Count | None, Field(description="Number of the spare whose pod it is; unset where it was made for the stage.")
    ] = None
    node: Annotated[Short | None, Field(description="The node it was given.")] = None
    path: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="The node's place in the network, coarse to fine: `zone-a/spine-1/leaf-3`.",
        ),
    ] = None
    last_node: Annotated[
        Short | None,
        Field(description="Between two attempts: the node it had, to which it comes back unless that was lost."),
    ] = None
    ready: Annotated[bool, Field(description="Whether its trainer answers and trains.")] = False
    restarts: Annotated[Count, Field(description="How often its own failure made the gang restart.")] = 0
    restarts_when_well: Annotated[
        Count | None, Field(description="Of a stage that serves: its container's restarts when it was last well.")
    ] = None
    step: Annotated[Count | None, Field(description="Optimiser steps it has completed.")] = None
    utilization: Annotated[Short | None, Field(description="Share of its time spent computing, of late.")] = None
    bubble: Annotated[Short | None, Field(description="Share of the schedule's time spent waiting, of late.")] = None
    memory_bytes: Annotated[Count | None, Field(description="Peak memory of its device so far, in bytes.")] = None
    exit_code: Annotated[int | None, Field(description="How its process ended last.")] = None
    reason: Annotated[
        Short | None, Field(description="Why it ended or does not start, as one CamelCase word: `ImagePullBackOff`.")
    ] = None
    message: Annotated[str | None, Field(max_length=4096, description="The same as a sentence.")] = None


class AskedJob(Value):
    """A running job that was asked to make way. It does, if it still runs as the attempt that was meant."""

    name: Annotated[Short, Field(description="Its namespace and name: `team-a/gpt`.")]
    uid: Annotated[Short, Field(description="Its uid.")]
    attempt: Annotated[Count, Field(description="The attempt that is to leave.")]


class RefusedNode(Value):
    """A node that refused one of the job's pods. The job leaves it out until then, whatever room it has."""

    node: Annotated[Short, Field(description="Its name.")]
    until: Annotated[Time, Field(description="Until when the job leaves it out.")]
    times: Annotated[int, Field(ge=1, description="How often in a row; each time it is left out longer.")] = 1
    message: Annotated[
        str, Field(max_length=512, description="What refused there, in the scheduler's, kubelet's or our own words.")
    ]


class LostRank(Value):
    """A rank that is being replaced in place: the pod that goes, until the next incarnation of the gang has met."""

    replica: Annotated[Count, Field(description="Its replica.")]
    stage: Annotated[Count, Field(description="Its stage.")]
    uid: Annotated[Short, Field(description="Uid of the pod that is lost; empty if it was gone already.")] = ""
    gently: Annotated[
        bool, Field(description="Whether it is asked to leave, and gets its grace to hand over: it only was slow.")
    ] = False


class RecoveryStatus(Value):
    """Recovery in place: how often the present gang met, and who is being replaced."""

    incarnation: Annotated[
        Count, Field(description="How often the present gang has met; stored before it is told, so that none is twice.")
    ] = 0
    replacements: Annotated[Count, Field(description="Stages replaced while the others kept their processes.")] = 0
    handed_over: Annotated[
        Count, Field(description="Those of them that were told to leave and handed over, so that no step was repeated.")
    ] = 0
    replacing: Annotated[
        tuple[LostRank, ...],
        Field(
            max_length=2048,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="The ranks that are being replaced.",
        ),
    ] = ()
    since: Annotated[Time | None, Field(description="Since when the others wait for them.")] = None
    replacement_times: Annotated[
        tuple[Time, ...],
        Field(
            max_length=1000,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="When those were that count now, beside `spec.recovery.replacementWindowSeconds`.",
        ),
    ] = ()
    last_failure: Annotated[
        Short | None, Field(description="Rank and step of the last failure of a stage's own: `0/1 at 1200`.")
    ] = None

    last_seconds: Annotated[Short | None, Field(description="How long the others waited for the last replacement.")] = (
        None
    )
    last_remedy_time: Annotated[
        Time | None, Field(description="When something was done last about a stage that held up the others.")
    ] = None
    speeds: Annotated[
        tuple[Short, ...] | None,
        Field(
            max_length=1024,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="How fast each stage was measured to be, the fastest being 1: what the layers were divided by.",
        ),
    ] = None

    spares: Annotated[
        tuple[Spare, ...],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="The pods that are kept to take a lost stage's place at once.",
        ),
    ] = ()
    spares_used: Annotated[Count, Field(description="Replacements for which a spare took the place.")] = 0
    spare_failed_time: Annotated[
        Time | None, Field(description="When a spare failed last; the next is made a minute later.")
    ] = None
    fewer_spares: Annotated[
        str | None, Field(max_length=1024, description="Why there are fewer than `spec.recovery.spares`.")
    ] = None

    resizes: Annotated[
        Count,
        Field(description="How often the present gang went over to other replicas, stages or layers from memory."),
    ] = 0
    resizing: Annotated[Resizing | None, Field(description="Such a change that is under way.")] = None
    layers: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        Field(
            max_length=4096,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="Layers of each stretch, which the present gang keeps as it went over.",
        ),
    ] = None
    stall_seconds: Annotated[
        Short | None, Field(description="How long training stood still at the last such change.")
    ] = None

    def of_next_attempt(self) -> "RecoveryStatus":
        """Return what is left when a new attempt begins: its gang has never met."""
        gone = {"incarnation": 0, "replacing": (), "since": None, "resizes": 0, "resizing": None, "layers": None}
        gone |= {"spares": (), "fewer_spares": None}
        return self.model_copy(update=gone)


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
            # As a map, who wrote which field of which entry would be kept, too: as much again as the entries.
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
