"""What a status says of a job that goes over to another number of replicas from memory, while it trains."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.chosen import Chosen


class JoiningRank(Value):
    """A rank of a further replica, and the node that is kept for it."""

    replica: Annotated[int, Field(ge=0, description="Its replica.")]
    stage: Annotated[int, Field(ge=0, description="Its stage.")]
    node: Annotated[str, Field(max_length=253, description="Its node.")]
    path: Annotated[
        str, Field(max_length=2048, description="The node's place in the network, coarse to fine, as of `stages`.")
    ] = ""


class Resizing(Value):
    """A change of the number of replicas that is under way. Until it is decided, the gang is what it was."""

    chosen: Annotated[Chosen, Field(description="What the job goes over to.")]
    wanted: Annotated[int, Field(ge=1, description="The replicas that the spec asked for when it began.")]
    layers: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(
            max_length=4096,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="Layers of each stretch, which stay where they are.",
        ),
    ]
    joining: Annotated[
        tuple[JoiningRank, ...],
        Field(
            max_length=2048,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="The ranks of the further replicas.",
        ),
    ] = ()
    since: Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="When it began.")]
    released_time: Annotated[
        str | None,
        Field(
            json_schema_extra={"format": "date-time"},
            description="When the pods of the further replicas were all there, and let go to their nodes.",
        ),
    ] = None
    decided: Annotated[
        bool, Field(description="Whether the ranks are those of the new number: they go over at a step border.")
    ] = False
    after: Annotated[
        int, Field(ge=0, description="Once it is decided: the incarnation that the stages leave for it.")
    ] = 0
