"""The type of `spec.schedule`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from pipelinejob.base.values import OPEN, Value
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.rules import Reason, Rule, ruled
from pipelinejob.spec.schedules.facts import (
    ASYNCHRONOUS,
    CAPPED,
    CHOOSES_CHUNKS,
    IN_WAVES,
    TRAINS_NOTHING,
    UPDATES_BATCHES,
    UPDATES_EACH,
)

MAX_TEXT = 2**17  # characters of `actions`: `kubectl apply` keeps a second copy, of 256 KiB at most


class ScheduleSpec(Value):
    """The order in which a stage works through the micro-batches of a step."""

    model_config = ruled(
        Rule(
            rule=f"!(self.name in {TRAINS_NOTHING.cel})",
            message=f"{TRAINS_NOTHING.either} has no backward pass and trains nothing; use 1F1B, or another one "
            "(evaluation plays the forward passes of whichever it is)",
            field=".name",
        ),
        Rule(
            rule=f"!has(self.virtualStages) || self.name in {CHOOSES_CHUNKS.cel}",
            message=f"virtualStages goes with {CHOOSES_CHUNKS.both} only; leave it out, or use one of them",
            says=f"%s has its own number of virtual stages; leave this out, or use {CHOOSES_CHUNKS.either}",
            values=("self.name",),
            field=".virtualStages",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule=f"!has(self.virtualStages) || !(self.name in {IN_WAVES.cel}) || self.virtualStages % 2 == 0",
            message=f"virtualStages must be even with {IN_WAVES.both}: a wave goes down the stages and up again",
            says="%d is odd, but a wave of %s goes down the stages and up again; use an even number",
            values=("self.virtualStages", "self.name"),
            field=".virtualStages",
        ),
        Rule(
            rule="has(self.microBatches) || has(self.batchSize) || has(self.globalBatchSize)",
            message="microBatches is compulsory without batchSize or globalBatchSize; give it, or one of these to have"
            " it chosen",
            field=".microBatches",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule="!has(self.batchSize) || !has(self.globalBatchSize)",
            message="batchSize, of each replica, and globalBatchSize, of all together, are both given; keep one",
            field=".globalBatchSize",
        ),
        Rule(
            rule="!has(self.globalBatchSize) || !has(self.microBatches) || !has(self.microBatchSize)",
            message="globalBatchSize has micro-batches chosen; leave out microBatches, microBatchSize, or this",
            field=".globalBatchSize",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule="!has(self.batchSize) || !has(self.microBatches) || !has(self.microBatchSize)"
            " || (self.batchSize <= self.microBatches * self.microBatchSize"
            " && self.batchSize > (self.microBatches - 1) * self.microBatchSize)",
            message="batchSize must fill all micro-batches but the last, and leave something for that one: "
            "more than (microBatches - 1) * microBatchSize, at most microBatches * microBatchSize",
            says="%d sequences do not make %d micro-batches of at most %d; use %d to %d, or leave it out",
            values=(
                "self.batchSize",
                "self.microBatches",
                "self.microBatchSize",
                "(self.microBatches - 1) * self.microBatchSize + 1",
                "self.microBatches * self.microBatchSize",
            ),
            field=".batchSize",
        ),
        Rule(
            rule=f"!has(self.batchSize) || !(self.name in {ASYNCHRONOUS.cel})",
            message="batchSize goes with synchronous schedules only: asynchronous updates gather whole micro-batches; "
            "leave it out",
            field=".batchSize",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule=f"self.name != '{ScheduleName.CUSTOM}' || has(self.actions)",
            message="actions is compulsory with custom; write one line of actions for each stage, "
            "or name another schedule",
            field=".actions",
            reason=Reason.REQUIRED,
        ),
        Rule(
            rule=f"self.name == '{ScheduleName.CUSTOM}' || !has(self.actions)",
            message="actions goes with custom only; leave it out, or set name to custom",
            field=".actions",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule=f"!has(self.memoryCap) || self.name in {CAPPED.cel}",
            message=f"memoryCap goes with {CAPPED.both} only; leave it out, or use auto",
            says=f"%s holds what it holds, whatever the cap; leave this out, or use {CAPPED.either}",
            values=("self.name",),
            field=".memoryCap",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule=f"!has(self.updateInterval) || self.name in {ASYNCHRONOUS.cel}",
            message=f"updateInterval goes with the asynchronous {ASYNCHRONOUS.both} only; the others update once a "
            "step; leave it out",
            field=".updateInterval",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule=f"!has(self.updateInterval) || !(self.name in {UPDATES_EACH.cel}) || self.updateInterval == 1",
            message=f"{UPDATES_EACH.both} updates after every micro-batch; leave updateInterval out, or use "
            f"{UPDATES_BATCHES.either}",
            field=".updateInterval",
        ),
        Rule(
            rule="!has(self.updateInterval) || !has(self.microBatches) || self.updateInterval <= self.microBatches",
            message="updateInterval must be at most microBatches",
            says="%d micro-batches to an update are more than the %d of a step; use at most %d",
            values=("self.updateInterval", "self.microBatches", "self.microBatches"),
            field=".updateInterval",
        ),
        Rule(
            rule=f"!self.verticalSync || self.name in {ASYNCHRONOUS.cel}",
            message=f"verticalSync goes with the asynchronous {ASYNCHRONOUS.both} only; with the others all stages use "
            "the same weights anyhow; leave it out",
            field=".verticalSync",
            reason=Reason.FORBIDDEN,
        ),
        Rule(
            rule="!has(self.recomputeStages) || (has(self.recompute) && self.recompute)",
            message="recomputeStages narrows recompute, which is not set; set it to true, or leave this out",
            field=".recomputeStages",
        ),
        Rule(
            rule="!has(self.recomputeLayers) || (!has(self.recompute) && !has(self.recomputeStages))",
            message="recomputeLayers says for each stage what recompute and recomputeStages say for whole stages; "
            "keep one of them",
            field=".recomputeLayers",
            reason=Reason.FORBIDDEN,
        ),
    )

    name: Annotated[
        ScheduleName,
        Field(
            description="The schedule, by its paper's name: `pipelinejob schedule list` shows what each one costs and "
            "holds. auto: the best one for the stages' costs and memory. custom: the one in `actions`."
        ),
    ] = ScheduleName.ONE_F_ONE_B
    micro_batches: Annotated[
        int,
        Field(
            ge=1,
            le=65536,
            description="Micro-batches in a step, for each replica; chosen if unset beside a batch size.",
        ),
    ] = OPEN
    micro_batch_size: Annotated[
        int,
        Field(
            ge=1,
            le=65536,
            description="Sequences in a micro-batch; if unset, chosen beside a batch size, 1 without.",
        ),
    ] = OPEN
    batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=2**32,
            description="Sequences in a step, for each replica, where the last micro-batch is to be smaller, or "
            "micro-batches are to be chosen; microBatches * microBatchSize if unset. Losses count by tokens.",
        ),
    ] = None
    global_batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=2**32,
            description="Sequences in a step, over all replicas, where micro-batches are to be chosen.",
        ),
    ] = None
    virtual_stages: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description=f"Stretches of layers on each stage, with {CHOOSES_CHUNKS.both}; "
            "the schedule's usual number if unset.",
        ),
    ] = None
    actions: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_TEXT,
            description="With custom: the schedule itself, one line of actions a stage, as in F0 F1 B0 B1, after lines "
            "of routes where a stage holds several stretches of layers.",
        ),
    ] = None
    memory_cap: Annotated[
        tuple[Annotated[float, Field(gt=0, le=65536)], ...] | None,
        Field(
            min_length=1,
            max_length=1024,
            description="Most activations a stage may hold, in micro-batches: one number for all stages, or one each. "
            "With auto, what the devices' memory leaves if unset.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    update_interval: Annotated[
        int | None,
        Field(
            ge=1,
            le=65536,
            description=f"Micro-batches that an update of {UPDATES_BATCHES.either} gathers, at least as many as "
            "stages; as many as stages if unset.",
        ),
    ] = None
    vertical_sync: Annotated[
        bool,
        Field(description="Asynchronous schedules: every stage uses the weight version that the first one used."),
    ] = False
    recompute: Annotated[
        bool,
        Field(
            description="true: keep only what a stage receives, and compute the rest again while its gradient is "
            "awaited. false: keep all. If unset, as many of each stage's first layers are computed again as its "
            "device's memory demands, or as is best where degrees or micro-batches are chosen."
        ),
    ] = OPEN
    recompute_stages: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1023)], ...] | None,
        Field(
            min_length=1,
            max_length=1024,
            description="The stages that recompute; all if unset.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ] = None
    recompute_layers: Annotated[
        tuple[Annotated[int, Field(ge=0, le=65536)], ...] | None,
        Field(
            min_length=1,
            max_length=1024,
            description="In place of recompute, one number a stage: how many of its first layers are computed again; "
            "0 for none. More than it has are all.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _of_one(cls, value: Any) -> Any:
        """Let a micro-batch have one sequence where nothing says how many there are together."""
        sizes = ("micro_batch_size", "batch_size", "global_batch_size")
        if isinstance(value, Mapping) and all(
            value.get(key) is None for size in sizes for key in (size, to_camel(size))
        ):
            return {**value, "micro_batch_size": 1}
        return value

    @property
    def is_open(self) -> bool:
        """Whether the number or the size of the micro-batches is still to be chosen."""
        return self.micro_batches is None or self.micro_batch_size is None or self.global_batch_size is not None

    @property
    def sequences(self) -> int:
        """The sequences of a step, for each replica."""
        return self.batch_size or self.micro_batches * self.micro_batch_size

    @property
    def micro_batch_sizes(self) -> tuple[int, ...]:
        """The sequences of each micro-batch; only the last may have fewer."""
        full = self.micro_batches - 1
        return (self.micro_batch_size,) * full + (self.sequences - full * self.micro_batch_size,)

    @property
    def leaves_recomputing_open(self) -> bool:
        """Whether what is computed again is to be chosen."""
        return self.recompute is None and self.recompute_layers is None

    def recomputed_layers(self, stage: int) -> int | None:
        """Return how many of a stage's first layers are computed again; None: all of them."""
        if self.recompute_layers is not None:
            return self.recompute_layers[stage]
        is_whole = bool(self.recompute) and (self.recompute_stages is None or stage in self.recompute_stages)
        return None if is_whole else 0

    def recomputes(self, stage: int) -> bool:
        """Return whether a stage computes anything again."""
        return self.recomputed_layers(stage) != 0

    def recomputing(self, layers: tuple[int, ...]) -> "ScheduleSpec":
        """Return the same schedule with so many first layers of each stage computed again."""
        own: dict[str, object] = (
            {"recompute": None, "recompute_layers": layers} if any(layers) else {"recompute": False}
        )
        return self.model_copy(update={"recompute_stages": None, "recompute_layers": None, **own})
