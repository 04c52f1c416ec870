"""The manifests that a command was given: read, validated, parsed."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelinejob.base import names
from pipelinejob.base.errors import InvalidManifestError, SpecError
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.validation.validate import Manifest, defaulted, load_manifests, validate

STDIN = Path("-")


FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A manifest in YAML or JSON; - reads standard input.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenJob:
    """One valid PipelineJob."""

    manifest: Mapping[str, Any]  # as it was written
    stored: Mapping[str, Any]  # as the API server would store it, with a namespace
    spec: PipelineJobSpec

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.stored["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return str(self.stored["metadata"]["namespace"])


def jobs_in(documents: Sequence[Manifest], file: Path) -> list[GivenJob]:
    """Read all PipelineJobs of a file's documents; objects of other kinds are left alone.

    Raises InvalidManifestError with all that is wrong, or if there is no PipelineJob.
    """
    return [given_job(manifest) for manifest in jobs_among(documents, file)]


def read_documents(file: Path) -> list[Manifest]:
    """Read all documents of a file, or of standard input.

    Raises InvalidManifestError.
    """
    return load_manifests(sys.stdin.read() if file == STDIN else file)


def jobs_among(documents: Sequence[Manifest], file: Path) -> list[Mapping[str, Any]]:
    """Return the documents that claim to be a PipelineJob, valid or not.

    Raises InvalidManifestError if nothing does.
    """
    jobs = list(_ours(documents))
    if not jobs:
        kinds = ", ".join(sorted({str(manifest.get("kind")) for manifest in documents}))
        raise InvalidManifestError([SpecError(str(file), f"there is no {names.KIND} in it, only {kinds}")])
    return jobs


def given_job(manifest: Mapping[str, Any]) -> GivenJob:
    """Validate a manifest and read it.

    Raises InvalidManifestError.
    """
    spec = validate(manifest)
    stored = defaulted(manifest)
    stored["metadata"].setdefault("namespace", "default")
    return GivenJob(manifest=manifest, stored=stored, spec=spec)


def _ours(manifests: Sequence[Manifest]) -> Iterator[Mapping[str, Any]]:
    for manifest in manifests:
        if manifest.get("kind") == names.PROFILE_KIND:
            continue
        api = str(manifest.get("apiVersion", names.API_VERSION))
        if api.startswith(f"{names.GROUP}/") or manifest.get("kind") in {None, names.KIND}:
            yield manifest
