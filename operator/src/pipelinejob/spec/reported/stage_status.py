"""One rank: where it runs, how it does, how it ended."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.reported.fields import Count, Short


class StageStatus(Value):
    """One rank: stage `stage` of replica `replica`."""

    replica: Annotated[Count, Field(description="The replica's number, from 0.")]
    stage: Annotated[Count, Field(description="The stage's number, from 0.")]
    pod: Annotated[Short, Field(description="Name of its pod.")]
    spare: Annotated[
        Count | None, Field(description="Number of the spare whose pod it is; unset where it was made for the stage.")
    ] = None
    node: Annotated[Short | None, Field(description="The node it was given.")] = None
    path: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="The node's place in the network, coarse to fine: `zone-a/spine-1/leaf-3`.",
        ),
    ] = None
    last_node: Annotated[
        Short | None,
        Field(description="Between two attempts: the node it had, to which it comes back unless that was lost."),
    ] = None
    ready: Annotated[bool, Field(description="Whether its trainer answers and trains.")] = False
    restarts: Annotated[Count, Field(description="How often its own failure made the gang restart.")] = 0
    restarts_when_well: Annotated[
        Count | None, Field(description="Of a stage that serves: its container's restarts when it was last well.")
    ] = None
    step: Annotated[Count | None, Field(description="Optimiser steps it has completed.")] = None
    utilization: Annotated[Short | None, Field(description="Share of its time spent computing, of late.")] = None
    bubble: Annotated[Short | None, Field(description="Share of the schedule's time spent waiting, of late.")] = None
    memory_bytes: Annotated[Count | None, Field(description="Peak memory of its device so far, in bytes.")] = None
    exit_code: Annotated[int | None, Field(description="How its process ended last.")] = None
    reason: Annotated[
        Short | None, Field(description="Why it ended or does not start, as one CamelCase word: `ImagePullBackOff`.")
    ] = None
    message: Annotated[str | None, Field(max_length=4096, description="The same as a sentence.")] = None
