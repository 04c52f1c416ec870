"""`pipelinejob validate`: every error of every manifest, by its path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelinejob.errors import InvalidManifestError, SpecError
from pipelinejob_operator.cli.exits import Exit
from pipelinejob_operator.cli.manifests import given_job, job_manifests
from pipelinejob_operator.cli.output import Format, FormatOption, write


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Manifests; - reads standard input.")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Name every error of the manifests by its path, as the API server would; touch nothing."""
    verdicts = [verdict for file in files for verdict in _verdicts(file)]
    write(verdicts, output, lambda: _print(verdicts))
    if not all(verdict["valid"] for verdict in verdicts):
        raise typer.Exit(Exit.INVALID_MANIFEST)


def _verdicts(file: Path) -> list[dict[str, Any]]:
    try:
        return [_verdict(file, manifest) for manifest in job_manifests(file)]
    except InvalidManifestError as error:  # of the file itself
        return [_bad(file, None, error.errors)]


def _verdict(file: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    try:
        job = given_job(manifest)
    except InvalidManifestError as error:
        metadata = manifest.get("metadata")
        return _bad(file, metadata.get("name") if isinstance(metadata, Mapping) else None, error.errors)
    return {"file": str(file), "name": job.name, "valid": True, "errors": []}


def _bad(file: Path, name: str | None, errors: tuple[SpecError, ...]) -> dict[str, Any]:
    listed = [{"path": error.path, "problem": error.problem} for error in errors]
    return {"file": str(file), "name": name, "valid": False, "errors": listed}


def _print(verdicts: list[dict[str, Any]]) -> None:
    for verdict in verdicts:
        where = f"{verdict['file']}: {verdict['name']}" if verdict["name"] else verdict["file"]
        if verdict["valid"]:
            typer.echo(f"{where}: valid")
        for error in verdict["errors"]:
            typer.echo(f"{where}: {error['path']}: {error['problem']}")
