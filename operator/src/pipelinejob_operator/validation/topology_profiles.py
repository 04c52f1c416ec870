"""Validates a TopologyProfile: by its CRD's schema, then by its CEL rules."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

from pipelinejob.base import names
from pipelinejob.spec.crds import topology_crd
from pipelinejob.spec.network.topology_profile import TopologyProfileSpec
from pipelinejob_operator.validation.celrules import ABSENT
from pipelinejob_operator.validation.openapi import read_as_server
from pipelinejob_operator.validation.validate import METADATA, errors_by, kind_errors, raise_if_any


class NamedProfile(NamedTuple):
    """A TopologyProfile by the name that jobs call it."""

    name: str
    spec: TopologyProfileSpec


def validate_profile(manifest: Mapping[str, Any]) -> NamedProfile:
    """Read a good TopologyProfile.

    Raises InvalidManifestError with everything that is wrong, each with its path.
    """
    schema = _schema()
    raise_if_any(list(kind_errors(manifest, names.PROFILE_KIND)))
    raise_if_any(errors_by(schema, manifest, ABSENT))
    stored = read_as_server(manifest, schema)
    return NamedProfile(stored["metadata"]["name"], TopologyProfileSpec.model_validate(stored["spec"]))


@cache
def _schema() -> Mapping[str, Any]:
    schema = deepcopy(topology_crd.root_schema())
    schema["properties"]["metadata"] = METADATA
    return schema
