"""What is true of a job: its conditions, and the one word derived from them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.reported.fields import OpenName, Time


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
