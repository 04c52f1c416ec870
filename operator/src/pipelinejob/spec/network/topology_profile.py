"""What a cluster's administrator writes: the types of a TopologyProfile's `spec`.

It says which node labels tell the network's shape where no preset knows them, and how fast the
links of each level are. The CRD is generated from these types, as a PipelineJob's is from
`spec.py`.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.rules import Rule, ruled, rules_extra

MAX_LEVELS = 8
LABEL_KEY = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

_LevelName = Annotated[str, Field(min_length=1, max_length=63)]
_LabelKey = Annotated[str, Field(min_length=1, max_length=316)]


class MissingLabels(StrEnum):
    """What a node counts as that lacks the label of a level."""

    SEPARATE = "Separate"
    TOGETHER = "Together"
    EXCLUDE = "Exclude"


class Link(Value):
    """How fast two nodes talk: a link kind of the hardware file, or figures of your own."""

    model_config = ruled(
        Rule(
            rule="has(self.kind) != has(self.bytesPerSecond)",
            message="give either the kind of a link, as in infiniband-ndr, or bytesPerSecond",
        ),
        Rule(
            rule="!has(self.latencySeconds) || has(self.bytesPerSecond)",
            message="latencySeconds goes with bytesPerSecond; a kind brings its own latency",
            field=".latencySeconds",
        ),
    )

    kind: Annotated[
        str | None,
        Field(min_length=1, max_length=63, description="A link kind by name, as in infiniband-ndr."),
    ] = None
    bytes_per_second: Annotated[
        float | None, Field(gt=0, le=1e15, description="Bytes a second that one GPU sends to another node.")
    ] = None
    latency_seconds: Annotated[
        float | None, Field(ge=0, le=10, description="Seconds that the first byte takes; 0 if unset.")
    ] = None


class ProfileLevel(Value):
    """One tier of the network."""

    model_config = ruled(
        Rule(
            rule="!(self.name in ['node', 'cluster'])",
            message="node and cluster are the ends of every tree; give the level another name",
            says='"%s" is an end of every tree, which all profiles have; give the level another name',
            values=("self.name",),
            field=".name",
        ),
        Rule(
            rule="self.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            message="must be lower-case letters, digits and -, and begin with a letter",
            says='"%s" is no name for a level; use lower-case letters, digits and -, and begin with a letter',
            values=("self.name",),
            field=".name",
        ),
    )

    name: Annotated[_LevelName, Field(description="What manifests and status call the level, as in leaf.")]
    keys: Annotated[
        tuple[_LabelKey, ...],
        Field(
            min_length=1,
            max_length=8,
            description="Node label keys of this level; of several, the first that a node carries counts.",
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                **rules_extra(
                    Rule(
                        rule=f"self.all(key, key.matches('{LABEL_KEY}'))",
                        message="every key must be a node label key, as in topology.kubernetes.io/rack",
                    ),
                ),
            },
        ),
    ]
    optional: Annotated[
        bool,
        Field(description="Not every node has one, as with NVLink domains: those without stand alone, and no note."),
    ] = False
    link: Annotated[
        Link | None, Field(description="What joins two nodes of one such domain; by the level's name if unset.")
    ] = None


class TopologyProfileSpec(Value):
    """The shape of a cluster's network, as node labels tell it, and the speed of its links."""

    levels: Annotated[
        tuple[ProfileLevel, ...],
        Field(
            min_length=1,
            max_length=MAX_LEVELS,
            description="The tiers from coarse to fine; below the last stands the node.",
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                **rules_extra(
                    Rule(
                        rule="self.all(level, self.exists_one(other, other.name == level.name))",
                        message="two levels have one name; give each its own",
                    ),
                    Rule(
                        rule="self.all(level, level.keys.all(key, "
                        "self.map(other, other.keys.filter(each, each == key).size()).sum() == 1))",
                        message="a node label key stands here twice; keep one of them",
                    ),
                ),
            },
        ),
    ]
    missing_labels: Annotated[
        MissingLabels,
        Field(
            description="What a node counts as that lacks a level's label. Separate: a domain of its own. Together: "
            "all such nodes are one domain. Exclude: it takes no stage."
        ),
    ] = MissingLabels.SEPARATE
    cluster_link: Annotated[
        Link | None, Field(description="What joins two domains of the coarsest level, as in wan between providers.")
    ] = None
