"""The CustomResourceDefinition of PipelineJob, generated from the types of its spec and status."""

from pipelinejob.base import names
from pipelinejob.spec.crds.crd_schema import AGE, Column, Schema, definition, root, structural_schema
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.rules import Reason, Rule
from pipelinejob.spec.status import PipelineJobStatus

NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_LIMIT = names.MAX_JOB_NAME_LENGTH

_ACTIVE = "!has(oldSelf.status) || !has(oldSelf.status.completionTime)"

ROOT_RULES = (
    Rule(
        rule=f"size(self.metadata.name) <= {NAME_LIMIT} && self.metadata.name.matches('{NAME_PATTERN}')",
        message="must be lower-case letters, digits and -, begin with a letter and have at most "
        f"{NAME_LIMIT} characters, because pods are named <name>-r<replica>-s<stage>",
        says='"%s" cannot name pods; use lower-case letters, digits and -, begin with a letter, '
        f"at most {NAME_LIMIT} characters",
        values=("self.metadata.name",),
        field=".metadata.name",
    ),
    Rule(
        rule=f"{_ACTIVE} || self.spec.suspend == oldSelf.spec.suspend",
        message="suspend cannot change, the job has ended and is never run again; create a job of another name",
        field=".spec.suspend",
        reason=Reason.FORBIDDEN,
    ),
    Rule(
        rule=f"{_ACTIVE} || self.spec.training == oldSelf.spec.training",
        message="training cannot change, the job has ended and is never run again; create a job of another name",
        field=".spec.training",
        reason=Reason.FORBIDDEN,
    ),
)

COLUMNS = (
    Column("State", ".status.state", "string", 0, "Where the job stands."),
    Column("Stages", ".status.stagesReady", "string", 0, "Ranks that train, of all."),
    Column("Step", ".status.step", "integer", 0, "Optimiser steps completed."),
    Column("Progress", ".status.progress", "string", 0, "Share of the steps completed."),
    Column("Loss", ".status.loss", "string", 0, "Loss of the last step seen, in nats a token."),
    Column("Bubble", ".status.bubble", "string", 0, "Measured share of time that stages wait."),
    Column("Restarts", ".status.restarts", "integer", 0, "Restarts counted."),
    AGE,
    Column("Schedule", ".spec.schedule.name", "string", 1, "The micro-batch schedule."),
    Column("Nodes", ".status.nodes", "string", 1, "The nodes in use."),
    Column("Crossings", ".status.placement.crossed", "string", 1, "Neighbouring stages parted at each level."),
    Column("Penalty", ".status.placement.penalty", "string", 1, "Predicted share of a step that the crossings cost."),
    Column("Tokens/s", ".status.tokensPerSecond", "string", 1, "Measured tokens a second."),
    Column(
        "TTFT",
        ".status.plan.serving[2].firstTokenSeconds",
        "string",
        1,
        "Predicted seconds to the first token, 16 requests at once, of a job that serves.",
    ),
    Column(
        "TPOT",
        ".status.plan.serving[2].perTokenSeconds",
        "string",
        1,
        "Predicted seconds from a token to the next, 16 requests at once, of a job that serves.",
    ),
)


def generate() -> Schema:
    """Return the CRD, as the object that is applied."""
    return definition(
        scope="Namespaced",
        kind=names.KIND,
        plural=names.PLURAL,
        singular=names.SINGULAR,
        others={"shortNames": [names.SHORT_NAME], "categories": ["all", "ml"]},
        columns=COLUMNS,
        schema=root_schema(),
        scale={
            "specReplicasPath": ".spec.parallelism.data",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    )


def root_schema() -> Schema:
    """Return the structural schema of a whole PipelineJob."""
    return root(
        names.KIND,
        "A model trained as a pipeline: one pod a stage, planned, placed, run and measured.",
        ROOT_RULES,
        spec=structural_schema(PipelineJobSpec),
        status=structural_schema(PipelineJobStatus),
    )
