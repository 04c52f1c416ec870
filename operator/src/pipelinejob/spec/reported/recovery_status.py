"""How often a gang met, who of it is being replaced, and what it goes over to."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.reported.fields import Count, Short, Time
from pipelinejob.spec.reported.resizing import Resizing
from pipelinejob.spec.reported.sparing import Spare


class LostRank(Value):
    """A rank that is being replaced in place: the pod that goes, until the next incarnation of the gang has met."""

    replica: Annotated[Count, Field(description="Its replica.")]
    stage: Annotated[Count, Field(description="Its stage.")]
    uid: Annotated[Short, Field(description="Uid of the pod that is lost; empty if it was gone already.")] = ""
    gently: Annotated[
        bool, Field(description="Whether it is asked to leave, and gets its grace to hand over: it only was slow.")
    ] = False


class RecoveryStatus(Value):
    """Recovery in place: how often the present gang met, and who is being replaced."""

    incarnation: Annotated[
        Count, Field(description="How often the present gang has met; stored before it is told, so that none is twice.")
    ] = 0
    replacements: Annotated[Count, Field(description="Stages replaced while the others kept their processes.")] = 0
    handed_over: Annotated[
        Count, Field(description="Those of them that were told to leave and handed over, so that no step was repeated.")
    ] = 0
    replacing: Annotated[
        tuple[LostRank, ...],
        Field(
            max_length=2048,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="The ranks that are being replaced.",
        ),
    ] = ()
    since: Annotated[Time | None, Field(description="Since when the others wait for them.")] = None
    replacement_times: Annotated[
        tuple[Time, ...],
        Field(
            max_length=1000,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="When those were that count now, beside `spec.recovery.replacementWindowSeconds`.",
        ),
    ] = ()
    last_failure: Annotated[
        Short | None, Field(description="Rank and step of the last failure of a stage's own: `0/1 at 1200`.")
    ] = None

    last_seconds: Annotated[Short | None, Field(description="How long the others waited for the last replacement.")] = (
        None
    )
    last_remedy_time: Annotated[
        Time | None, Field(description="When something was done last about a stage that held up the others.")
    ] = None
    speeds: Annotated[
        tuple[Short, ...] | None,
        Field(
            max_length=1024,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="How fast each stage was measured to be, the fastest being 1: what the layers were divided by.",
        ),
    ] = None

    spares: Annotated[
        tuple[Spare, ...],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="The pods that are kept to take a lost stage's place at once.",
        ),
    ] = ()
    spares_used: Annotated[Count, Field(description="Replacements for which a spare took the place.")] = 0
    spare_failed_time: Annotated[
        Time | None, Field(description="When a spare failed last; the next is made a minute later.")
    ] = None
    fewer_spares: Annotated[
        str | None, Field(max_length=1024, description="Why there are fewer than `spec.recovery.spares`.")
    ] = None

    resizes: Annotated[
        Count,
        Field(description="How often the present gang went over to other replicas, stages or layers from memory."),
    ] = 0
    resizing: Annotated[Resizing | None, Field(description="Such a change that is under way.")] = None
    layers: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        Field(
            max_length=4096,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="Layers of each stretch, which the present gang keeps as it went over.",
        ),
    ] = None
    stall_seconds: Annotated[
        Short | None, Field(description="How long training stood still at the last such change.")
    ] = None

    def of_next_attempt(self) -> "RecoveryStatus":
        """Return what is left when a new attempt begins: its gang has never met."""
        gone = {"incarnation": 0, "replacing": (), "since": None, "resizes": 0, "resizing": None, "layers": None}
        gone |= {"spares": (), "fewer_spares": None}
        return self.model_copy(update=gone)
