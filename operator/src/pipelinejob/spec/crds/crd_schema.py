"""CustomResourceDefinitions from types.

pydantic's JSON schema is turned into the dialect that the API server accepts (a *structural*
schema of OpenAPI 3.0): references inlined, optional fields without null, defaults at every level,
nothing unbounded that a CEL rule walks over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelinejob.base import names
from pipelinejob.base.values import Value
from pipelinejob.spec.rules import Rule

Schema = dict[str, Any]


class Column(NamedTuple):
    """A column of `kubectl get`; those of priority 1 are shown by `-o wide` alone."""

    name: str
    path: str
    type: str
    priority: int
    description: str

    def dump(self) -> Schema:
        """Return the form that stands in the CRD."""
        return {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.path,
            "priority": self.priority,
            "description": self.description,
        }


AGE = Column("Age", ".metadata.creationTimestamp", "date", 0, "Time since it was created.")


def definition(
    *,
    scope: str,
    kind: str,
    plural: str,
    singular: str,
    others: Mapping[str, Sequence[str]],
    columns: Sequence[Column],
    schema: Schema,
    scale: Mapping[str, str] | None = None,
) -> Schema:
    """Return a CRD of one version, as the object that is applied.

    `others` are its short names and categories; `scale` names the fields of its scale subresource.
    """
    parts: Schema = ({"status": {}} if "status" in schema["properties"] else {}) | ({"scale": scale} if scale else {})
    subresources: Schema = {"subresources": parts} if parts else {}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": scope,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": singular, **others},
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    **subresources,
                    "additionalPrinterColumns": [column.dump() for column in columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def root(kind: str, description: str, rules: Sequence[Rule], **parts: Schema) -> Schema:
    """Return the structural schema of a whole object; its `parts` are `spec` and perhaps `status`."""
    return {
        "type": "object",
        "description": description,
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"The version of this form: {names.API_VERSION}."},
            "kind": {"type": "string", "description": f"The kind of object: {kind}."},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
            },  # the API server brings its own description
            **parts,
        },
        "x-kubernetes-validations": [rule.dump() for rule in rules],
    }


def structural_schema(kind: type[Value]) -> Schema:
    """Return the structural schema of a type."""
    schema = kind.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


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
    """Replace a reference, or the one alternative beside null, by what it means.

    What stands beside it counts more.
    """
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

    An object's default is {}: the defaults of its own fields fill it, in the API server as on the
    command line.
    """
    if "default" not in schema:
        return schema
    default = schema.pop("default")
    if default is None:
        return schema
    return {**schema, "default": {} if schema.get("type") == "object" else default}
