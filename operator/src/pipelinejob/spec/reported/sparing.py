"""What a status says of a pod that is kept warm to take a lost stage's place."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value


class Spare(Value):
    """A pod `<job>-spare-<number>` that has imported what a stage needs, and waits to be told whose place it takes."""

    number: Annotated[int, Field(ge=0, description="Its number, of which its name is made.")]
    node: Annotated[str, Field(max_length=253, description="Its node.")]
    path: Annotated[
        str, Field(max_length=2048, description="The node's place in the network, coarse to fine, as of `stages`.")
    ] = ""
    since: Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="Since when it is kept.")]
    ready: Annotated[bool, Field(description="Whether it has imported everything.")] = False
