"""The type of `spec.scheduling`: how the job stands to other jobs, and to the cluster's own scheduler."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.rules import Reason, Rule, rules_extra
from pipelinejob.values import Value

# Stands among the rules of the whole spec, which see whether it is suspended.
BINDING_RULE = Rule(
    rule="oldSelf.suspend || self.scheduling.binding == oldSelf.scheduling.binding",
    message="scheduling.binding cannot change while stages run by it; set suspend to true, apply, then change it",
    field=".scheduling.binding",
    reason=Reason.FORBIDDEN,
)

# And here both sides of what another scheduler cannot be held to.
LATE_RULE = Rule(
    rule="self.scheduling.binding != 'Late' || !has(self.topology.pipeline.required)",
    message="with scheduling.binding Late the cluster's scheduler chooses nodes, so no level can be required; "
    "tell that scheduler in spec.template, or bind Early",
    field=".topology.pipeline.required",
)


class Binding(StrEnum):
    """When the stages get their numbers."""

    EARLY = "Early"  # the operator chooses the node of every stage, then lets the pods go there
    LATE = "Late"  # the cluster's scheduler chooses nodes; the stages are numbered along them afterwards


class Scheduling(Value):
    """Whose turn it is, and who chooses the nodes."""

    priority_class_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            description="A PriorityClass of the cluster; its default one if unset. A higher value goes first, and may "
            "make jobs of lower value checkpoint and make way, unless its preemptionPolicy is Never.",
            json_schema_extra=rules_extra(
                Rule(
                    rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
                    message="must be the name of a PriorityClass: lower-case letters, digits, - and .",
                    says='"%s" cannot name a PriorityClass; use lower-case letters, digits, - and .',
                    values=("self",),
                )
            ),
        ),
    ] = None
    binding: Annotated[
        Binding,
        Field(
            description="Early: the operator chooses nodes. Late: the pods go where the cluster's scheduler puts them, "
            "and are numbered along the network afterwards."
        ),
    ] = Binding.EARLY
