"""What `spec.schedule` and the rest of a spec must satisfy together."""

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.families.built_in import BUILT_IN, LAYERS, LAYERS_KNOWN
from pipelinejob.spec.rules import Reason, Rule
from pipelinejob.spec.schedules.facts import (
    ASYNCHRONOUS,
    BOTH_WAYS,
    CHUNKS,
    ROUTE_OPEN,
    UPDATES_BATCHES,
)

MAX_WRITTEN = 2**21  # micro-batches times stages of a route: every rank writes the whole schedule out before it begins

_PIPELINE_OPEN = "!has(self.parallelism.pipeline)"
_STAGES = f"self.parallelism.pipeline * {CHUNKS}"
_INTERVAL = "(has(self.schedule.updateInterval) ? self.schedule.updateInterval : self.parallelism.pipeline)"
# Numbers of replicas that share a step's sequences equally, the small ones: what a message can
# offer.
_SHARING = "[1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 128].filter(n, self.schedule.globalBatchSize % n == 0)"

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
        " && !has(self.schedule.recomputeStages) && !has(self.schedule.recomputeLayers)"
        " && size(self.stageTemplates) == 0"
        " && (!has(self.schedule.memoryCap) || size(self.schedule.memoryCap) == 1))",
        message="pipeline is compulsory beside what speaks of single stages: custom, partition.layers, "
        "recomputeStages, recomputeLayers, stageTemplates, a memoryCap for each; set it, or leave them out",
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
        rule=f"{_PIPELINE_OPEN} || !has(self.schedule.recomputeLayers)"
        " || size(self.schedule.recomputeLayers) == self.parallelism.pipeline",
        message="schedule.recomputeLayers must have one number for each of the parallelism.pipeline stages",
        says="%d numbers for %d stages; give one for each, or leave it out to have it chosen",
        values=("size(self.schedule.recomputeLayers)", "self.parallelism.pipeline"),
        field=".schedule.recomputeLayers",
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
