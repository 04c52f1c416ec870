"""Validates a PipelineJob: by the CRD's schema, by its CEL rules, then by what neither can see.

The first two are read from the generated CRD itself, so that the verdict is the API server's.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from pipelinejob.base import names
from pipelinejob.base.errors import InvalidManifestError, SpecError
from pipelinejob.fabric.topology import NO_PROFILES, Profiles
from pipelinejob.planning.check import check
from pipelinejob.spec.crds import crd
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.validation.celrules import ABSENT, rule_errors
from pipelinejob_operator.validation.manifest_files import Manifest, load_manifests
from pipelinejob_operator.validation.openapi import read_as_server, schema_errors, unknown_fields

__all__ = ["Manifest", "defaulted", "load_manifests", "validate", "validate_change"]

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
# Kubernetes' ObjectMeta, which a CRD may not describe.
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "the pods are named after the job"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array"},
        "managedFields": {"type": "array"},
        "uid": {"type": "string"},
        "resourceVersion": {"type": "string"},
        "generation": {"type": "integer"},
        "selfLink": {"type": "string"},
        "creationTimestamp": {"type": "string"},
        "deletionTimestamp": {"type": "string"},
        "deletionGracePeriodSeconds": {"type": "integer"},
    },
    "required": ["name"],
}


def validate(manifest: Mapping[str, Any], profiles: Profiles | None = NO_PROFILES) -> PipelineJobSpec:
    """Return the spec of a valid manifest, defaults filled in; `profiles` are as in `check.check`.

    Raises InvalidManifestError with everything that is wrong, each with its path.
    """
    raise_if_any(list(kind_errors(manifest, names.KIND)))
    raise_if_any(list(_errors(manifest, ABSENT)))
    spec = PipelineJobSpec.model_validate(defaulted(manifest)["spec"])
    raise_if_any(list(check(spec, profiles)))
    return spec


def validate_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> PipelineJobSpec:
    """Return the spec of a valid manifest that may replace `old`, a valid one.

    Raises InvalidManifestError also for a change that can't be honoured.
    """
    raise_if_any(list(kind_errors(new, names.KIND)))
    raise_if_any(list(_errors(new, defaulted(old))))
    return validate(new)


def defaulted(manifest: Mapping[str, Any]) -> Manifest:
    """Return the manifest as the API server would store it."""
    stored: Manifest = read_as_server(manifest, _schema())
    return stored


def kind_errors(manifest: Mapping[str, Any], kind: str) -> Iterator[SpecError]:
    """Yield what is wrong with a manifest's apiVersion and kind."""
    for field, wanted in (("apiVersion", names.API_VERSION), ("kind", kind)):
        given = manifest.get(field)
        if given is None:
            yield SpecError(field, f"is missing; write {field}: {wanted}")
        elif given != wanted:
            yield SpecError(field, f'"{given}" is not known here; write {field}: {wanted}')


def name_errors(manifest: Mapping[str, Any]) -> list[SpecError]:
    """Return what the CRD's rules on metadata find wrong with a manifest's name."""
    named = {"metadata": {"name": manifest["metadata"]["name"]}}
    root = {key: value for key, value in _schema().items() if key != "properties"}
    rules = [each for each in root["x-kubernetes-validations"] if "self.metadata" in each["rule"]]
    return list(rule_errors(named, {**root, "x-kubernetes-validations": rules}, old=ABSENT, unsound=()))


def _errors(manifest: Mapping[str, Any], old: Any) -> list[SpecError]:
    return errors_by(_schema(), manifest, old)


def errors_by(schema: Mapping[str, Any], manifest: Mapping[str, Any], old: Any) -> list[SpecError]:
    """Return the errors that the API server reports for a manifest whose CRD has this schema."""
    # A status is the operator's, never its author's; the API server, too, lets it be when a
    # manifest is applied.
    given = {key: value for key, value in manifest.items() if key != "status"}
    value = read_as_server(given, schema)
    unsound = list(schema_errors(value, schema))
    broken = rule_errors(value, schema, old=old, unsound=[error.path for error in unsound])
    return [*unknown_fields("", given, schema), *unsound, *broken]


def raise_if_any(errors: list[SpecError]) -> None:
    """Raise InvalidManifestError with all of them."""
    if errors:
        raise InvalidManifestError(errors)


@cache
def _schema() -> Mapping[str, Any]:
    schema = deepcopy(crd.root_schema())
    schema["properties"]["metadata"] = METADATA
    return schema
