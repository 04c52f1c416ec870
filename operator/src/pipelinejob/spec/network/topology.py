"""What a user writes of the cluster's network: which labels tell it, and how close stages must be."""

from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.network.objective import Objective
from pipelinejob.spec.network.topology_profile import MissingLabels
from pipelinejob.spec.rules import Rule, ruled, rules_extra

_NODE = "['node', 'kubernetes.io/hostname']"  # a level below all others, which need not be listed


class TopologyScope(Value):
    """How close ranks must or should be, as names of topology levels."""

    model_config = ruled(
        Rule(
            rule="!has(self.required) || !has(self.preferred) || self.required != self.preferred",
            message="preferred must differ from required, which holds anyhow; name a narrower level or leave it out",
            field=".preferred",
        ),
    )

    required: Annotated[
        str | None, Field(min_length=1, max_length=316, description="All within one domain of this level, or wait.")
    ] = None
    preferred: Annotated[
        str | None, Field(min_length=1, max_length=316, description="Within one domain of this level where possible.")
    ] = None


class Topology(Value):
    """What the cluster's network looks like, and how close the stages must be."""

    model_config = ruled(
        Rule(
            rule=f"!has(self.levels) || !has(self.pipeline.required) || self.pipeline.required in self.levels "
            f"|| self.pipeline.required in {_NODE}",
            message="pipeline.required must be one of levels, or node",
            says='"%s" is not among levels; name one of them, or node, or add it',
            values=("self.pipeline.required",),
            field=".pipeline.required",
        ),
        Rule(
            rule=f"!has(self.levels) || !has(self.pipeline.preferred) || self.pipeline.preferred in self.levels "
            f"|| self.pipeline.preferred in {_NODE}",
            message="pipeline.preferred must be one of levels, or node",
            says='"%s" is not among levels; name one of them, or node, or add it',
            values=("self.pipeline.preferred",),
            field=".pipeline.preferred",
        ),
    )

    profile: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            description="Which node labels to read: a TopologyProfile's or a preset's name, or `auto` to detect it.",
        ),
    ] = "auto"
    levels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=316)], ...] | None,
        Field(
            min_length=1,
            max_length=8,
            description="Node label keys from coarse to fine, each once; overrides `profile`.",
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                **rules_extra(
                    Rule(
                        rule="self.all(key, self.exists_one(other, other == key))",
                        message="a node label key stands here twice; keep one of them",
                    ),
                    Rule(
                        rule="self.all(key, key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?"
                        "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))",
                        message="every level must be a node label key, as in topology.kubernetes.io/zone",
                    ),
                ),
            },
        ),
    ] = None
    missing_labels: Annotated[
        MissingLabels | None,
        Field(
            description="What a node counts as that lacks a level's label. Separate, as if unset: a domain of its own. "
            "Together: all such nodes are one domain. Exclude: it takes no stage. Overrides the TopologyProfile's."
        ),
    ] = None
    pipeline: Annotated[TopologyScope, Field(description="Closeness of the stages of one replica.")] = TopologyScope()
    objective: Annotated[
        Objective,
        Field(
            description="What is weighed against a short step. auto: the most room for the next job within `threshold` "
            "of the shortest step. chain: the shortest step. pack: the tightest domains that hold the job."
        ),
    ] = Objective.AUTO
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of a step that may be given up for more room, where `objective` is auto; 0.01 is 1 %.",
        ),
    ] = 0.01
