"""The CustomResourceDefinition of TopologyProfile, generated from the types of `topology_profile.py`."""

from pipelinejob.base import names
from pipelinejob.spec.crds.crd_schema import AGE, Column, Schema, definition, root, structural_schema
from pipelinejob.spec.network.topology_profile import TopologyProfileSpec
from pipelinejob.spec.rules import Rule

NAME_LIMIT = 63  # of `spec.topology.profile` in a job

ROOT_RULES = (
    Rule(
        rule=f"size(self.metadata.name) <= {NAME_LIMIT} && self.metadata.name != 'auto'",
        message=f"must have at most {NAME_LIMIT} characters, so that jobs can name it, and not be auto, which has jobs "
        "detect their profile",
        says=f'"%s" cannot be named by jobs; use at most {NAME_LIMIT} characters, and not auto',
        values=("self.metadata.name",),
        field=".metadata.name",
    ),
)


COLUMNS = (
    Column("Missing labels", ".spec.missingLabels", "string", 0, "What a node counts as that lacks a level's label."),
    AGE,
)


def generate() -> Schema:
    """Return the CRD, as the object that is applied."""
    return definition(
        scope="Cluster",
        kind=names.PROFILE_KIND,
        plural=names.PROFILE_PLURAL,
        singular=names.PROFILE_SINGULAR,
        others={"categories": ["ml"]},
        columns=COLUMNS,
        schema=root_schema(),
    )


def root_schema() -> Schema:
    """Return the structural schema of a whole TopologyProfile."""
    return root(
        names.PROFILE_KIND,
        "The shape of a cluster's network, for jobs: which node labels tell it, and how fast links are.",
        ROOT_RULES,
        spec=structural_schema(TopologyProfileSpec),
    )
