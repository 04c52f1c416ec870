"""The CustomResourceDefinition, generated from the types of `spec.py` and `status.py`.

pydantic's JSON schema is turned into the dialect that the API server accepts (a *structural* schema of OpenAPI 3.0):
references inlined, optional fields without null, defaults at every level, nothing unbounded that a CEL rule walks over.
"""

from collections.abc import Mapping
from typing import Any

from pipelinejob import names
from pipelinejob.rules import Reason, Rule
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.status import PipelineJobStatus
from pipelinejob.values import Value

Schema = dict[str, Any]

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
    ("State", ".status.state", "string", 0, "Where the job stands."),
    ("Stages", ".status.stagesReady", "string", 0, "Ranks that train, of all."),
    ("Step", ".status.step", "integer", 0, "Optimiser steps completed."),
    ("Progress", ".status.progress", "string", 0, "Share of the steps completed."),
    ("Loss", ".status.loss", "string", 0, "Loss of the last step seen, in nats a token."),
    ("Bubble", ".status.bubble", "string", 0, "Measured share of time that stages wait."),
    ("Restarts", ".status.restarts", "integer", 0, "Restarts counted."),
    ("Age", ".metadata.creationTimestamp", "date", 0, "Time since it was created."),
    ("Schedule", ".spec.schedule.name", "string", 1, "The micro-batch schedule."),
    ("Nodes", ".status.nodes", "string", 1, "The nodes in use."),
    ("Crossings", ".status.placement.crossed", "string", 1, "Neighbouring stages parted at each level."),
    ("Penalty", ".status.placement.penalty", "string", 1, "Predicted share of a step that the crossings cost."),
    ("Tokens/s", ".status.tokensPerSecond", "string", 1, "Measured tokens a second."),
)


def generate() -> Schema:
    """Give the CRD, as the object that is applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": ["all", "ml"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema() -> Schema:
    """Give the structural schema of a whole PipelineJob."""
    return {
        "type": "object",
        "description": "A model trained as a pipeline: one pod a stage, planned, placed, run and measured.",
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"The version of this form: {names.API_VERSION}."},
            "kind": {"type": "string", "description": f"The kind of object: {names.KIND}."},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
            },  # the API server brings its own description
            "spec": structural_schema(PipelineJobSpec),
            "status": structural_schema(PipelineJobStatus),
        },
        "x-kubernetes-validations": [rule.dump() for rule in ROOT_RULES],
    }


def structural_schema(kind: type[Value]) -> Schema:
    """Give the structural schema of a type."""
    schema = kind.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _column(name: str, path: str, kind: str, priority: int, description: str) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description}


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    merged = _inlined(schema, definitions)
    if merged.get("type") == "object" and "properties" in merged:
        properties = {key: _structural(value, definitions) for key, value in merged["properties"].items()}
        merged["properties"] = properties
        merged.pop("additionalProperties", None)
        merged["required"] = sorted(
            key for key, value in merged["properties"].items() if key in merged.get("required", ())
        )
    if "items" in merged:
        merged["items"] = _structural(merged["items"], definitions)
    if isinstance(merged.get("additionalProperties"), Mapping):
        merged["additionalProperties"] = _structural(merged["additionalProperties"], definitions)
    return _dialect(merged)


def _inlined(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Replace a reference, or the one alternative beside null, by what it means; what stands beside it counts more."""
    beside = {key: value for key, value in schema.items() if key not in {"$ref", "anyOf", "$defs", "title"}}
    if "$ref" in schema:
        beside = {**_inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions), **beside}
    if "anyOf" in schema:
        (present,) = (option for option in schema["anyOf"] if option.get("type") != "null")
        beside = {**_inlined(present, definitions), **beside}
    return beside


def _dialect(schema: Schema) -> Schema:
    """Turn what OpenAPI 3.0 writes otherwise."""
    if schema.get("required") == []:
        del schema["required"]
    schema.pop("propertyNames", None)  # the API server refuses a CRD that has it
    if schema.get("type") == "object" and "properties" not in schema and schema.get("additionalProperties") is True:
        del schema["additionalProperties"]  # a free form, kept by x-kubernetes-preserve-unknown-fields
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in schema:
            schema[bound.lower()] = schema.pop(f"exclusive{bound}")
            schema[f"exclusive{bound}"] = True
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    if schema.get("type") == "number":
        schema["format"] = "double"
    return _with_default(schema)


def _with_default(schema: Schema) -> Schema:
    """Keep a default that says something.

    An object's default is {}: the defaults of its own fields fill it, in the API server as on the command line.
    """
    if "default" not in schema:
        return schema
    default = schema.pop("default")
    if default is None:
        return schema
    return {**schema, "default": {} if schema.get("type") == "object" else default}
