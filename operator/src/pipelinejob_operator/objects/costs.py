"""Measured costs as a ConfigMap of the cluster holds them: written by `pipelinejob profile`, named by `spec.costs`."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.costs.layers import Profile
from pipelinejob.spec.job import CostsReference

DEFAULT_KEY = "profile.json"


class CostsError(PipelineJobError):
    """The measured costs that a job names cannot be had now; the message says why and what to do."""


def costs_config_map(profile: Profile, *, name: str, namespace: str) -> dict[str, Any]:
    """Return the ConfigMap that holds a profile."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {DEFAULT_KEY: profile.model_dump_json(by_alias=True, exclude_none=True, indent=1)},
    }


def costs_in(config_map: Mapping[str, Any] | None, reference: CostsReference) -> Profile:
    """Read the profile that a job names; `config_map` is None where there is none of that name.

    Raises CostsError.
    """
    where = f"spec.costs: config map {reference.config_map}"
    again = f"write it with `pipelinejob profile FILE --config-map {reference.config_map} | kubectl apply -f -`"
    if config_map is None:
        raise CostsError(f"{where} is not in the job's namespace; {again}, or leave spec.costs out")
    text = (config_map.get("data") or {}).get(reference.key)
    if not isinstance(text, str):
        held = ", ".join(sorted(config_map.get("data") or {})) or "nothing"
        raise CostsError(f"{where} has no entry {reference.key}, it holds {held}; name another in spec.costs.key")
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        problem = f"{at}: {first['msg']}" if at else first["msg"]
        raise CostsError(f"{where}: {reference.key} is no profile: {problem}; {again}") from error
