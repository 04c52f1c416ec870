"""What a user writes of recovery in place: a lost stage is replaced, and the others keep their processes."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.rules import Rule


class Recovery(Value):
    """Whether a lost stage alone is replaced, from what the others hold in memory, and what that may cost."""

    in_place: Annotated[
        bool,
        Field(
            description="true: where a stage is lost, only its pod is replaced, and all go on from the same step in "
            "memory. false: the whole gang restarts from its last checkpoint."
        ),
    ] = False
    interval_steps: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Steps between two copies of a stage's state in memory; as many are lost at most.",
        ),
    ] = 1
    silence_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=3600,
            description="Seconds without a heartbeat after which a stage counts as lost; an end is seen at once.",
        ),
    ] = 2
    wait_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=86_400,
            description="Seconds that the others wait for a replacement; then the whole gang restarts.",
        ),
    ] = 600
    max_replacements: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Replacements within `replacementWindowSeconds`; one more, and the whole gang restarts.",
        ),
    ] = 10
    replacement_window_seconds: Annotated[
        int,
        Field(
            ge=60,
            le=31_536_000,
            description="Count only replacements of the last so many seconds against `maxReplacements`.",
        ),
    ] = 3600
    spares: Annotated[
        int,
        Field(
            ge=0,
            le=64,
            description="Processes that `pipelinejob run` keeps warm to take a lost stage's place. A cluster keeps "
            "none, and says so in the event `NoSpares`.",
        ),
    ] = 0


RECOVERY_RULES = (
    Rule(
        rule="self.recovery.inPlace || self.recovery.spares == 0",
        message="recovery.spares take a lost stage's place, which needs recovery.inPlace: true; set it, or leave spares"
        " out",
        field=".recovery.spares",
    ),
    Rule(
        rule="!self.recovery.inPlace || self.device == 'cpu'",
        message="recovery.inPlace works over gloo only: use device: cpu, or leave it out and the gang restarts",
        says="recovery in place works over gloo only; use device: cpu, or leave recovery out and the gang restarts",
        field=".recovery.inPlace",
    ),
    Rule(
        rule="!self.recovery.inPlace || ((!has(self.parallelism.tensor) || self.parallelism.tensor == 1)"
        " && self.parallelism.sharding == 'none')",
        message="recovery.inPlace keeps whole stages, neither tensor ranks nor sharded moments: use tensor: 1 and "
        "sharding: none, or leave it out and the gang restarts",
        field=".recovery.inPlace",
    ),
    Rule(
        rule="!self.recovery.inPlace || self.scheduling.binding != 'Late'",
        message="recovery.inPlace needs scheduling.binding: Early: a replacement goes where the lost stage was",
        says="a replacement goes where the lost stage was, which binding: Late cannot say; use binding: Early",
        field=".recovery.inPlace",
    ),
)
