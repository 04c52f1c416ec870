"""What a user writes of failures: how many are restarted from, and which are final."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value


class RestartAction(StrEnum):
    """What a failure rule does."""

    FAIL = "Fail"
    RESTART = "Restart"


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
    """How often a failed gang is restarted from its last checkpoint, what is final, and how long a start may take."""

    max_restarts: Annotated[int, Field(ge=0, le=100_000, description="Restarts before the job fails.")] = 6
    start_timeout_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=604_800,
            description="Seconds that a stage may take from its node to its process: images, volumes, init containers; "
            "longer is a failure without an exit code. Unset: the operator's, 300 by default, and 1800 while an image "
            "is being pulled.",
        ),
    ] = None
    rules: Annotated[
        tuple[FailureRule, ...],
        Field(
            max_length=32,
            description="Rules by exit code, first match counts; the code is the trainer's, no other container's.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()
