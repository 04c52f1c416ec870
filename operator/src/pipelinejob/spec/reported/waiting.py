"""What a job that waits for room asked of others, and which nodes it leaves out."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.reported.fields import Count, Short, Time


class AskedJob(Value):
    """A running job that was asked to make way. It does, if it still runs as the attempt that was meant."""

    name: Annotated[Short, Field(description="Its namespace and name: `team-a/gpt`.")]
    uid: Annotated[Short, Field(description="Its uid.")]
    attempt: Annotated[Count, Field(description="The attempt that is to leave.")]


class RefusedNode(Value):
    """A node that refused one of the job's pods. The job leaves it out until then, whatever room it has."""

    node: Annotated[Short, Field(description="Its name.")]
    until: Annotated[Time, Field(description="Until when the job leaves it out.")]
    times: Annotated[int, Field(ge=1, description="How often in a row; each time it is left out longer.")] = 1
    message: Annotated[
        str, Field(max_length=512, description="What refused there, in the scheduler's, kubelet's or our own words.")
    ]
