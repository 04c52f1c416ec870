"""The CustomResourceDefinition of TopologyProfile, generated from the types of `topology_profile.py`."""

from pipelinejob import names
from pipelinejob.crd import Schema, structural_schema
from pipelinejob.rules import Rule
from pipelinejob.topology_profile import TopologyProfileSpec

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


def generate() -> Schema:
    """Give the CRD, as the object that is applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PROFILE_PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Cluster",
            "names": {
                "kind": names.PROFILE_KIND,
                "listKind": f"{names.PROFILE_KIND}List",
                "plural": names.PROFILE_PLURAL,
                "singular": names.PROFILE_SINGULAR,
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        {
                            "name": "Missing labels",
                            "type": "string",
                            "jsonPath": ".spec.missingLabels",
                            "description": "What a node counts as that lacks a level's label.",
                        },
                        {
                            "name": "Age",
                            "type": "date",
                            "jsonPath": ".metadata.creationTimestamp",
                            "description": "Time since it was created.",
                        },
                    ],
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema() -> Schema:
    """Give the structural schema of a whole TopologyProfile."""
    return {
        "type": "object",
        "description": "The shape of a cluster's network, for jobs: which node labels tell it, and how fast links are.",
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"The version of this form: {names.API_VERSION}."},
            "kind": {"type": "string", "description": f"The kind of object: {names.PROFILE_KIND}."},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": structural_schema(TopologyProfileSpec),
        },
        "x-kubernetes-validations": [rule.dump() for rule in ROOT_RULES],
    }
