"""What the replicas of a stage divide among them (`spec.parallelism.sharding`), and what goes with all of it."""

from enum import StrEnum

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.rules import Rule
from pipelinejob.spec.schedules.facts import ASYNCHRONOUS, BOTH_WAYS


class Sharding(StrEnum):
    """What the replicas of a stage divide among them, instead of each holding all of it."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    FULL = "full"


SHARDING_RULES = (
    Rule(
        rule="self.parallelism.sharding != 'full' || !has(self.model.entrypoint)",
        message="full gathers a layer's parameters for its own passes alone, and nobody knows what else layers of your "
        "own do with them; use optimizer, or a built-in or Hugging Face model",
        field=".parallelism.sharding",
    ),
    Rule(
        rule="self.parallelism.sharding != 'full' || !has(self.training.lora)",
        message="full shards what is trained, and of adapters the model that they stand beside is not; use optimizer",
        field=".parallelism.sharding",
    ),
    Rule(
        rule="self.parallelism.sharding != 'full'"
        f" || !(self.schedule.name in {BOTH_WAYS.cel} || self.schedule.name in {ASYNCHRONOUS.cel})",
        message="full goes with synchronous schedules that hold each stage on one rank of a pipeline; use "
        f"{ScheduleName.DUALPIPE_V} instead of {BOTH_WAYS.either}, 1F1B instead of one that updates within a step, or "
        "none",
        says="%s updates within a step, or holds each stage on two ranks, which full does not go with; use "
        f"{ScheduleName.DUALPIPE_V} or 1F1B, or none",
        values=("self.schedule.name",),
        field=".parallelism.sharding",
    ),
)
