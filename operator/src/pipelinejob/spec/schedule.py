"""The type of `spec.schedule`, and what a schedule and the rest of a spec must satisfy together."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from pipelinejob.base.values import OPEN, Value
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.built_in import BUILT_IN, LAYERS, LAYERS_KNOWN
from pipelinejob.spec.rules import Reason, Rule, ruled
from pipelinejob.spec.schedule_facts import (
    ASYNCHRONOUS,
    BOTH_WAYS,
    CAPPED,
    CHOOSES_CHUNKS,
    CHUNKS,
    IN_WAVES,
    ROUTE_OPEN,
    TRAINS_NOTHING,
    UPDATES_BATCHES,
    UPDATES_EACH,
)

MAX_WRITTEN = 2**21  # micro-batches times stages of a route: every rank writes the whole schedule out before it begins
MAX_TEXT = 2**17  # characters of `actions`: `kubectl apply` keeps a second copy, of 256 KiB at most

_PIPELINE_OPEN = "!has(self.parallelism.pipeline)"
_STAGES = f"self.parallelism.pipeline * {CHUNKS}"
_INTERVAL = "(has(self.schedule.updateInterval) ? self.schedule.updateInterval : self.parallelism.pipeline)"


# Numbers of replicas that share a step's sequences equally, the small ones: what a message can offer.
_SHARING = "[1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 128].filter(n, self.schedule.globalBatchSize % n == 0)"


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
            description="Keep only what a stage receives, and compute the rest again while its gradient is awaited; if "
            "unset, false, or as is best where degrees or micro-batches are chosen."
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

    def recomputes(self, stage: int) -> bool:
        """Return whether a stage computes its activations again."""
        return bool(self.recompute) and (self.recompute_stages is None or stage in self.recompute_stages)


# Rules of a whole spec.
SCHEDULE_RULES = (
    Rule(
        rule="!has(self.schedule.batchSize) || has(self.parallelism.data) || !has(self.parallelism.gpus)",
        message="batchSize counts the sequences of each replica, but how many replicas there are is open; "
        "use globalBatchSize, or set parallelism.data",
        field=".schedule.batchSize",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule="!has(self.parallelism.gpus) || has(self.parallelism.data) || has(self.schedule.batchSize)"
        " || has(self.schedule.globalBatchSize)",
        message="globalBatchSize is compulsory where the number of replicas is chosen: without it a step's size "
        "would follow from the choice; give it, or set parallelism.data",
        field=".schedule.globalBatchSize",
        reason=Reason.REQUIRED,
    ),
    Rule(
        rule="!has(self.schedule.globalBatchSize) || !has(self.parallelism.data)"
        " || self.schedule.globalBatchSize % self.parallelism.data == 0",
        message="globalBatchSize must be a multiple of parallelism.data, so that every replica has as many sequences",
        says="%d sequences cannot be shared equally by %d replicas; use a multiple of %d, or one of %s replicas",
        values=("self.schedule.globalBatchSize", "self.parallelism.data", "self.parallelism.data", _SHARING),
        field=".schedule.globalBatchSize",
    ),
    Rule(
        rule=f"!({_PIPELINE_OPEN}) || (self.schedule.name != '{ScheduleName.CUSTOM}' && !has(self.partition.layers)"
        " && !has(self.schedule.recomputeStages) && size(self.stageTemplates) == 0"
        " && (!has(self.schedule.memoryCap) || size(self.schedule.memoryCap) == 1))",
        message="pipeline is compulsory beside what speaks of single stages: custom, partition.layers, "
        "recomputeStages, stageTemplates, a memoryCap for each; set it, or leave them out",
        field=".parallelism.pipeline",
        reason=Reason.REQUIRED,
    ),
    Rule(
        rule=f"self.schedule.name != '{ScheduleName.CUSTOM}' || (has(self.schedule.microBatches)"
        " && !has(self.schedule.globalBatchSize))",
        message="microBatches is compulsory with custom, whose actions are written for so many, and globalBatchSize, "
        "which has them chosen, cannot be; set it",
        field=".schedule.microBatches",
        reason=Reason.REQUIRED,
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || !{LAYERS_KNOWN} || self.parallelism.pipeline > {LAYERS} || {_STAGES} <= {LAYERS}",
        message="the schedule gives each stage several stretches of layers, more in all than there are layers; "
        "use fewer stages, fewer virtualStages, or 1F1B",
        says="%s gives %d stages %d stretches of layers each, which %d layers cannot fill; use at most %d stages, "
        "fewer virtualStages, or 1F1B",
        values=(
            "self.schedule.name",
            "self.parallelism.pipeline",
            CHUNKS,
            LAYERS,
            f"{LAYERS} / {CHUNKS}",
        ),
        field=".schedule",
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || self.schedule.name in {ROUTE_OPEN.cel} || !has(self.partition.layers)"
        f" || size(self.partition.layers) == {_STAGES}",
        message="partition.layers must have one entry for each of the parallelism.pipeline stages, "
        "times the stretches of layers that the schedule gives each one",
        says="%d entries for %d stages times %d stretches of layers each; give one for each, or leave partition out to "
        "have it chosen",
        values=("size(self.partition.layers)", "self.parallelism.pipeline", CHUNKS),
        field=".partition.layers",
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || !(self.schedule.name in {ROUTE_OPEN.cel}) || !has(self.partition.layers)"
        " || size(self.partition.layers) % self.parallelism.pipeline == 0",
        message="partition.layers must have as many entries for each of the parallelism.pipeline stages",
        says="%d entries are no multiple of %d stages; give as many for each stage, or leave partition out to have "
        "it chosen",
        values=("size(self.partition.layers)", "self.parallelism.pipeline"),
        field=".partition.layers",
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || !(self.schedule.name in {BOTH_WAYS.cel}) || self.parallelism.pipeline % 2 == 0",
        message=f"{BOTH_WAYS.both} run from both ends and need an even number of stages; use one, or DualPipeV",
        says="%s runs from both ends and needs an even number of stages, not %d; use one, or DualPipeV",
        values=("self.schedule.name", "self.parallelism.pipeline"),
        field=".parallelism.pipeline",
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || !has(self.schedule.memoryCap)"
        " || size(self.schedule.memoryCap) in [1, self.parallelism.pipeline]",
        message="schedule.memoryCap must have one entry for all stages, or one for each",
        says="%d entries for %d stages; give one for all, or one for each",
        values=("size(self.schedule.memoryCap)", "self.parallelism.pipeline"),
        field=".schedule.memoryCap",
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || !has(self.schedule.recomputeStages)"
        " || self.schedule.recomputeStages.all(stage, stage < self.parallelism.pipeline)",
        message="schedule.recomputeStages names a stage that does not exist; stages count from 0 to "
        "parallelism.pipeline - 1",
        says="a stage is named that does not exist; the stages are 0 to %d",
        values=("self.parallelism.pipeline - 1",),
        field=".schedule.recomputeStages",
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || !has(self.schedule.microBatches)"
        f" || !(self.schedule.name in {UPDATES_BATCHES.cel})"
        f" || ({_INTERVAL} >= self.parallelism.pipeline && {_INTERVAL} <= self.schedule.microBatches)",
        message=f"{UPDATES_BATCHES.both} keeps two weight versions, which suffices only if an update gathers at least "
        "as many micro-batches as there are stages, and a step holds one: pipeline <= updateInterval <= microBatches",
        says="an update of %d micro-batches must gather at least as many as the %d stages, and at most the %d of a "
        "step; change one of them",
        values=(_INTERVAL, "self.parallelism.pipeline", "self.schedule.microBatches"),
        field=".schedule",
    ),
    Rule(
        rule=f"!(self.schedule.name in {ASYNCHRONOUS.cel}) || self.training.clipNorm == 0.0",
        message="clipNorm must be 0 with an asynchronous schedule: there is no moment at which the gradients of all "
        "stages are known, so that their global norm is not; set it to 0, or use a synchronous schedule",
        says="%s has no moment at which the gradients of all stages, and so their global norm, are known; "
        "set clipNorm to 0, or use a synchronous schedule",
        values=("self.schedule.name",),
        field=".training.clipNorm",
    ),
    Rule(
        rule=f"!(self.schedule.name in {ASYNCHRONOUS.cel}) || self.training.onNotFinite != 'Skip'",
        message="onNotFinite cannot be Skip with an asynchronous schedule: by the time the gradients of a step are "
        "known, it has updated; use Stop or RollBack, or a synchronous schedule",
        says="%s has updated by the time the gradients of a step are known, so that none can be skipped; use Stop or "
        "RollBack, or a synchronous schedule",
        values=("self.schedule.name",),
        field=".training.onNotFinite",
    ),
    *(
        Rule(
            rule=f"!(self.schedule.name in {ASYNCHRONOUS.cel}) || !has(self.model.{name})"
            f" || !self.model.{name}.tieEmbeddings",
            message="tieEmbeddings cannot be with an asynchronous schedule: embedding and head update at different "
            "times, and their two copies would drift apart; set it to false, or use a synchronous schedule",
            field=f".model.{name}.tieEmbeddings",
        )
        for name, kind in BUILT_IN.items()
        if "tie_embeddings" in kind.model_fields
    ),
    Rule(
        rule=f"{_PIPELINE_OPEN} || !has(self.schedule.microBatches)"
        f" || {_STAGES} * self.schedule.microBatches <= {MAX_WRITTEN}",
        message=f"stages * microBatches must be at most {MAX_WRITTEN}; use fewer and larger micro-batches",
        says=f"%d micro-batches on %d stages are more than a schedule of {MAX_WRITTEN} can list; "
        "use fewer and larger ones",
        values=("self.schedule.microBatches", _STAGES),
        field=".schedule.microBatches",
    ),
)
