"""What a status says of a job that goes over to other replicas, stages, layers or schedule from memory."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.chosen import Chosen


class JoiningRank(Value):
    """A rank that joins, and the node that is kept for it; or one that leaves, and its node."""

    replica: Annotated[int, Field(ge=0, description="Its replica.")]
    stage: Annotated[int, Field(ge=0, description="Its stage.")]
    node: Annotated[str, Field(max_length=253, description="Its node.")]
    path: Annotated[
        str, Field(max_length=2048, description="The node's place in the network, coarse to fine, as of `stages`.")
    ] = ""


_LAYERS = {"x-kubernetes-list-type": "atomic"}


class Shape(Value):
    """Degrees and layers that a gang trains with, and ranks that only it has, of two between which it goes over."""

    chosen: Annotated[Chosen, Field(description="Degrees, schedule and micro-batches.")]
    layers: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(max_length=4096, json_schema_extra=_LAYERS, description="Layers of each stretch."),
    ]
    leaving: Annotated[
        tuple[JoiningRank, ...],
        Field(max_length=2048, json_schema_extra=_LAYERS, description="The ranks that leave at the border."),
    ] = ()


class Resizing(Value):
    """A change of replicas, stages, layers or schedule, under way. Until it is decided, the gang is what it was."""

    chosen: Annotated[Chosen, Field(description="What the job goes over to.")]
    wanted: Annotated[int, Field(ge=1, description="The replicas that the spec asked for when it began.")]
    layers: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(
            max_length=4096,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="Layers of each stretch that it goes over to.",
        ),
    ]
    joining: Annotated[
        tuple[JoiningRank, ...],
        Field(
            max_length=2048,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="The ranks that join.",
        ),
    ] = ()
    since: Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="When it began.")]
    released_time: Annotated[
        str | None,
        Field(
            json_schema_extra={"format": "date-time"},
            description="When the pods of the ranks that join were all there, and let go to their nodes.",
        ),
    ] = None
    asked: Annotated[
        str, Field(max_length=1024, description="The shape that the spec asked for when it began, in short.")
    ] = ""
    before: Annotated[
        Shape | None, Field(description="What it trained with before, where other layers or ranks hold its state.")
    ] = None
    returns: Annotated[
        bool, Field(description="Whether it goes back to what it trained with, as a rank was lost before the border.")
    ] = False
    decided: Annotated[
        bool, Field(description="Whether the ranks are those that it goes over to, which they do at a step border.")
    ] = False
    after: Annotated[
        int, Field(ge=0, description="Once it is decided: the incarnation that the stages leave for it.")
    ] = 0
