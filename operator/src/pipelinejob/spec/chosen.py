"""What a search chose for a spec that left something open: small enough for a job's status, all that a plan needs."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import PipelineJobSpec, ScheduleSpec


class Chosen(Value):
    """Degrees, schedule and micro-batches, as they are to stand in the spec."""

    pipeline: Annotated[int, Field(ge=1, le=1024, description="Stages of a replica.")]
    data: Annotated[int, Field(ge=1, le=1024, description="Replicas of the pipeline.")]
    tensor: Annotated[int, Field(ge=1, le=64, description="GPUs of a stage.")]
    schedule: Annotated[ScheduleName, Field(description="The schedule's name.")]
    virtual_stages: Annotated[
        int | None, Field(ge=1, le=64, description="Stretches of layers on each stage, where the schedule lets choose.")
    ] = None
    micro_batches: Annotated[int, Field(ge=1, le=65536, description="Micro-batches in a step, for each replica.")]
    micro_batch_size: Annotated[int, Field(ge=1, le=65536, description="Sequences in a micro-batch.")]
    batch_size: Annotated[
        int | None,
        Field(ge=1, le=2**32, description="Sequences in a step, for each replica, if the last micro-batch has fewer."),
    ] = None
    recompute: Annotated[bool, Field(description="Whether activations are computed again.")] = False
    recompute_stages: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1023)], ...] | None,
        Field(
            max_length=1024,
            description="The stages that recompute; all if unset.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    recompute_layers: Annotated[
        tuple[Annotated[int, Field(ge=0, le=65536)], ...] | None,
        Field(
            max_length=1024,
            description="How many of each stage's first layers are computed again, where not all of them are.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None

    @property
    def num_gpus(self) -> int:
        """Count the devices that are used."""
        return self.pipeline * self.data * self.tensor


def decided(spec: PipelineJobSpec) -> Chosen:
    """Return what a spec says that leaves nothing open."""
    assert not spec.is_open, "nothing is chosen for it"
    schedule, degrees = spec.schedule, spec.parallelism
    return Chosen(
        pipeline=degrees.pipeline or 1,
        data=degrees.data or 1,
        tensor=degrees.tensor or 1,
        schedule=schedule.name,
        virtual_stages=schedule.virtual_stages,
        micro_batches=schedule.micro_batches,
        micro_batch_size=schedule.micro_batch_size,
        batch_size=schedule.batch_size,
        recompute=bool(schedule.recompute),
        recompute_stages=schedule.recompute_stages,
        recompute_layers=schedule.recompute_layers,
    )


def resolved(spec: PipelineJobSpec, chosen: Chosen) -> PipelineJobSpec:
    """Return the spec with everything chosen in its place; it is open no more."""
    degrees = {"gpus": None, "pipeline": chosen.pipeline, "data": chosen.data, "tensor": chosen.tensor}
    parallelism = spec.parallelism.model_copy(update=degrees)
    fields = {
        **spec.schedule.model_dump(),
        "name": chosen.schedule,
        "virtual_stages": chosen.virtual_stages,
        "micro_batches": chosen.micro_batches,
        "micro_batch_size": chosen.micro_batch_size,
        "batch_size": chosen.batch_size,
        "global_batch_size": None,
        "memory_cap": spec.schedule.memory_cap if chosen.schedule is spec.schedule.name else None,
        "recompute": chosen.recompute,
        "recompute_stages": chosen.recompute_stages,
    }
    if chosen.recompute_layers is not None:  # it is chosen anew for the devices that the stages come to stand on
        del fields["recompute"]
    schedule = ScheduleSpec.model_validate(fields)
    return spec.model_copy(update={"parallelism": parallelism, "schedule": schedule})
