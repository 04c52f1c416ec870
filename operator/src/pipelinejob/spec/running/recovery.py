"""What a user writes of recovery in place: a lost stage is replaced, and the others keep their processes."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.rules import Rule
from pipelinejob.spec.schedules.facts import ASYNCHRONOUS


class Stragglers(StrEnum):
    """What is done about a stage that holds up the others."""

    REPORT = "Report"  # it is told of
    REPLACE = "Replace"  # its pod is replaced in place, on another node
    REPARTITION = "Repartition"  # the layers are divided anew, by what was measured


class NoRoom(StrEnum):
    """What is done about a lost stage for which no node has room."""

    RESTART = "Restart"  # all go back to the checkpoint, and the gang waits for room: of fewer replicas, if it may
    WAIT = "Wait"  # the others wait for room with what they hold in memory, as long as for a replacement


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
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="Steps between two copies of a stage's state in memory; as many are lost at most. Unset: as "
            "few as cost at most 2 % of the time, as predicted; `status.plan.protection` says how many.",
        ),
    ] = None
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
    no_room: Annotated[
        NoRoom,
        Field(
            description="What is done where no node has room for a lost stage's replacement. Restart: the gang lets go "
            "of its nodes, and goes on from the last checkpoint where there is room, with fewer replicas if "
            "`scheduling.minReplicas` allows. Wait: the others wait for room for up to `waitSeconds`, then the same."
        ),
    ] = NoRoom.RESTART
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
    stragglers: Annotated[
        Stragglers,
        Field(
            description="What is done about a stage that holds up the others. Report: it is told of. Replace: its pod "
            "goes to another node in place, and the node is left out for `replacementWindowSeconds`. Repartition: the "
            "layers are divided anew by what was measured, and all go on with that, from memory with `inPlace`, else "
            "from a checkpoint. Either is done once within `replacementWindowSeconds`, and only if it pays within the "
            "steps that are left."
        ),
    ] = Stragglers.REPORT
    spares: Annotated[
        int,
        Field(
            ge=0,
            le=64,
            description="Pods that are kept warm to take a lost stage's place, each with what a stage's pod asks for; "
            "of `pipelinejob run`, processes. They get room once the gang trains, never keep it waiting, and hold "
            "their nodes as stages do; `status.recovery.fewerSpares` says why there are fewer.",
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
        rule="self.recovery.noRoom != 'Wait' || self.recovery.inPlace",
        message="recovery.noRoom: Wait has stages wait with what they hold in memory, which needs recovery.inPlace: "
        "true; set it, or leave noRoom out",
        field=".recovery.noRoom",
    ),
    Rule(
        rule="self.recovery.stragglers != 'Replace' || self.recovery.inPlace",
        message="recovery.stragglers: Replace replaces a stage in place, which needs recovery.inPlace: true; set it, "
        "or use Repartition or Report",
        field=".recovery.stragglers",
    ),
    Rule(
        rule="self.recovery.stragglers != 'Repartition' || !has(self.partition.layers)",
        message="recovery.stragglers: Repartition divides the layers anew, which partition.layers forbids; leave that "
        "out, or use Report",
        field=".recovery.stragglers",
    ),
    Rule(
        rule="self.recovery.stragglers != 'Repartition'"
        f" || !(self.schedule.name == 'custom' || self.schedule.name in {ASYNCHRONOUS.cel})",
        message="recovery.stragglers: Repartition would change what an asynchronous schedule trains, as each stage has "
        "its own weight versions, and custom may be one; use Report",
        field=".recovery.stragglers",
    ),
    Rule(
        rule="!self.recovery.inPlace || self.device == 'cpu'",
        message="recovery.inPlace works over gloo only: use device: cpu, or leave it out and the gang restarts",
        says="recovery in place works over gloo only; use device: cpu, or leave recovery out and the gang restarts",
        field=".recovery.inPlace",
    ),
    Rule(
        rule="!self.recovery.inPlace || ((!has(self.parallelism.tensor) || self.parallelism.tensor == 1)"
        " && self.parallelism.sharding == 'none' && self.parallelism.expert == 1)",
        message="recovery.inPlace keeps whole stages that every replica has, not tensor ranks, sharded moments or "
        "divided experts: use tensor: 1, sharding: none and expert: 1, or leave it out and the gang restarts",
        field=".recovery.inPlace",
    ),
    Rule(
        rule="!self.recovery.inPlace || self.scheduling.binding != 'Late'",
        message="recovery.inPlace needs scheduling.binding: Early: a replacement goes where the lost stage was",
        says="a replacement goes where the lost stage was, which binding: Late cannot say; use binding: Early",
        field=".recovery.inPlace",
    ),
)
