"""The plan and the placement, as short as a status says them."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.reported.fields import Count, Short


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
