"""The measured costs that a command plans with: from a file, or from the config map that a manifest names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.costs.layers import Profile
from pipelinejob_operator.cli.given.manifests import GivenJob
from pipelinejob_operator.objects.costs import costs_in

ProfileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Measured costs, as `pipelinejob profile` writes them; they count before spec.costs."
    ),
]


class ProfileFileError(PipelineJobError):
    """The file of measured costs is not what it should be."""


def costs_of(job: GivenJob, documents: Sequence[Mapping[str, Any]], profile: Path | None) -> Profile | None:
    """Return the costs that a job is to be planned with; None: nothing was measured.

    `profile` is the file that --profile names; without one the config map of `spec.costs` is
    looked for among the documents of the manifest's file. Raises ProfileFileError, and CostsError
    for one that holds no profile.
    """
    if profile is not None:
        return read_profile(profile)
    reference = job.spec.costs
    if reference is None:
        return None
    found = next((each for each in documents if _is_config_map(each, reference.config_map, job.namespace)), None)
    if found is None:  # it is in a cluster
        typer.echo(
            f"note: {job.name}: spec.costs names config map {reference.config_map}, which is not in the file: planned"
            " without; give its profile with --profile",
            err=True,
        )
        return None
    return costs_in(found, reference)


def read_profile(file: Path) -> Profile:
    """Read a file of measured costs.

    Raises ProfileFileError.
    """
    try:
        return Profile.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ProfileFileError(f"--profile {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ProfileFileError(
            f"--profile {file}: {where}: {first['msg']}; write it with `pipelinejob profile`"
        ) from error
    except ValueError as error:
        raise ProfileFileError(f"--profile {file}: is no JSON: {error}; write it with `pipelinejob profile`") from error


def _is_config_map(document: Mapping[str, Any], name: str, namespace: str) -> bool:
    metadata = document.get("metadata")
    if document.get("kind") != "ConfigMap" or not isinstance(metadata, dict):
        return False
    return metadata.get("name") == name and metadata.get("namespace", namespace) == namespace
