"""What a user writes of failures: how many are restarted from, and which are final."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.rules import Reason, Rule, ruled

MAX_IN_WINDOW = 64  # restarts whose times a status holds


class RestartAction(StrEnum):
    """What a failure rule does."""

    FAIL = "Fail"  # end the job
    RESTART = "Restart"  # go on from the last checkpoint, counted against maxRestarts
    IGNORE = "Ignore"  # go on from the last checkpoint, counted against no limit


class Truth(StrEnum):
    """What a condition's status may be."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class PodCondition(Value):
    """A condition that the pod of the lost stage has, as in a Job's podFailurePolicy."""

    type: Annotated[
        str, Field(min_length=1, max_length=316, description="Its type: DisruptionTarget, or one of your own.")
    ]
    status: Annotated[Truth, Field(description="Its status.")] = Truth.TRUE


class FailureRule(Value):
    """What to do when a stage ends so; the first rule that matches counts."""

    model_config = ruled(
        Rule(
            rule="has(self.onExitCodes) != has(self.onPodConditions)",
            message="a rule goes by onExitCodes or by onPodConditions; give one of the two, and two rules for both",
            reason=Reason.REQUIRED,
        )
    )

    action: Annotated[
        RestartAction,
        Field(
            description="Fail: end the job. Restart: count a restart, and go on from the last checkpoint. "
            "Ignore: go on, and count against no limit."
        ),
    ]
    on_exit_codes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=255)], ...] | None,
        Field(
            min_length=1,
            max_length=255,
            description="Exit codes of the trainer, 1 to 255.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ] = None
    on_pod_conditions: Annotated[
        tuple[PodCondition, ...] | None,
        Field(
            min_length=1,
            max_length=32,
            description="Conditions of its pod, one of which it has. A pod that is gone has none.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None


class FailurePolicy(Value):
    """How often a failed gang is restarted from its last checkpoint, what is final, and how long a start may take."""

    model_config = ruled(
        Rule(
            rule=f"!has(self.restartWindowSeconds) || self.maxRestarts <= {MAX_IN_WINDOW}",
            message=f"maxRestarts must be at most {MAX_IN_WINDOW} beside restartWindowSeconds; use a shorter window",
            says=f"%d restarts are more than the {MAX_IN_WINDOW} that are kept count of in a window; use fewer in a "
            "shorter one",
            values=("self.maxRestarts",),
            field=".maxRestarts",
        )
    )

    max_restarts: Annotated[int, Field(ge=0, le=100_000, description="Restarts before the job fails.")] = 6
    restart_window_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=31_536_000,
            description="Count only restarts of the last so many seconds against maxRestarts; all there ever were if "
            "unset.",
        ),
    ] = None
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
    hang_timeout_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=604_800,
            description="Seconds after a step in which no other ends; then the gang hangs: each stage writes its "
            "stacks to its log, and the one that the others wait for has failed, without an exit code. Unset: 20 times "
            "the longest step so far, and 300 at least. An evaluation or a checkpoint may take 1800 in any case.",
        ),
    ] = None
    rules: Annotated[
        tuple[FailureRule, ...],
        Field(
            max_length=32,
            description="Rules by the trainer's exit code, no other container's, or by its pod's conditions; the first "
            "match counts.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()
