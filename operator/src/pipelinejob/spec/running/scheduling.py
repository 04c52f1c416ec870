"""The type of `spec.scheduling`: how the job stands to other jobs, and to the cluster's own scheduler."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.rules import Reason, Rule, ruled, rules_extra

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


MIN_REPLICAS_RULES = (
    Rule(
        rule="!has(self.scheduling.minReplicas) || (has(self.schedule.globalBatchSize) && has(self.parallelism.data))",
        message="minReplicas goes with parallelism.data, the replicas that are wanted, and schedule.globalBatchSize, "
        "which fewer of them share; set both, or leave it out",
        field=".scheduling.minReplicas",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule="!has(self.scheduling.minReplicas) || !has(self.parallelism.data)"
        " || self.scheduling.minReplicas <= self.parallelism.data",
        message="minReplicas must be at most parallelism.data",
        says="%d replicas at least are more than the %d that are wanted; lower it, or raise parallelism.data",
        values=("self.scheduling.minReplicas", "self.parallelism.data"),
        field=".scheduling.minReplicas",
    ),
)


class Binding(StrEnum):
    """When the stages get their numbers."""

    EARLY = "Early"  # the operator chooses the node of every stage, then lets the pods go there
    LATE = "Late"  # the cluster's scheduler chooses nodes; the stages are numbered along them afterwards


class Provisioning(Value):
    """How an autoscaler is asked for nodes that do not exist: by a ProvisioningRequest of cluster-autoscaler's API."""

    class_name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
            description="Its provisioningClassName: how nodes are to be provided.",
        ),
    ] = "best-effort-atomic-scale-up.autoscaling.x-k8s.io"
    parameters: Annotated[
        dict[str, Annotated[str, Field(max_length=255)]],
        Field(max_length=100, description='Its parameters, as the class wants them: `ValidUntilSeconds: "3600"`.'),
    ] = {}  # noqa: RUF012  # values are frozen


class Scheduling(Value):
    """Whose turn it is, and who chooses the nodes."""

    model_config = ruled(
        Rule(
            rule="!has(self.provisioning) || self.binding != 'Late'",
            message="provisioning is for jobs that bind Early, whose pods no autoscaler sees; "
            "late-bound pods it sees as they are, so leave provisioning out",
            field=".provisioning",
            reason=Reason.FORBIDDEN,
        )
    )

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
    provisioning: Annotated[
        Provisioning | None,
        Field(
            description="Ask an autoscaler for nodes where none has room for the job; never if unset. "
            "`provisioning: {}` asks for all of them at once or none."
        ),
    ] = None
    min_replicas: Annotated[
        int | None,
        Field(
            ge=1,
            le=1024,
            description="Run with fewer replicas than `parallelism.data`, but so many at least, rather than wait for "
            "room; the job grows as room comes. It waits for all of them if unset, and in a queue of Kueue's.",
        ),
    ] = None
