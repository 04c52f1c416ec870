"""What is said of stages one by one: which layers they have, and what is different about their pods."""

from typing import Annotated, Any

from pydantic import Field

from pipelinejob.base.values import Value

LayerCount = Annotated[int, Field(ge=1, le=4096)]
PodTemplate = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class Partition(Value):
    """Which layers stand on which stage; chosen by cost if unset."""

    layers: Annotated[
        tuple[LayerCount, ...] | None,
        Field(
            min_length=1,
            max_length=4096,
            description="Layers of each stretch, first to last: one a stage, or, where the schedule gives a stage "
            "several, pipeline * virtualStages. Embedding and head of a built-in model count as layers.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None


class StageTemplate(Value):
    """What is different for some stages."""

    stage: Annotated[int, Field(ge=0, le=1023, description="The stage that this changes, counted from 0.")]
    template: Annotated[
        PodTemplate,
        Field(description="Merged over `spec.template` for this stage; containers are merged by name."),
    ]
