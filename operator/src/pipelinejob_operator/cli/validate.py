"""`pipelinejob validate`: every error of every manifest, by its path."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelinejob.base import names
from pipelinejob.base.errors import InvalidManifestError, SpecError
from pipelinejob_operator.cli.exits import Exit
from pipelinejob_operator.cli.given.filling import fill as fill_in
from pipelinejob_operator.cli.given.manifests import STDIN, given_job, jobs_among, read_documents
from pipelinejob_operator.cli.shown.output import Format, FormatOption, write
from pipelinejob_operator.validation.manifest_files import Manifest
from pipelinejob_operator.validation.topology_profiles import validate_profile

_SUFFIXES = {".yaml", ".yml", ".json"}
_POSITION = re.compile(r"\d+:\d+")  # of an error in a file: line, column


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Manifests, or folders of them, with all below; - reads standard input."
        ),
    ],
    *,
    fill: Annotated[
        bool,
        typer.Option(
            "--fill",
            help="Write numLayers and config of Hugging Face models into the manifests first, from their folders.",
        ),
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Name every error of the manifests by its path, as the API server would; touch nothing unless told to."""
    for file in files if fill else ():
        fill_in(file, "--fill")
    verdicts = [verdict for file in files for verdict in (_of_folder(file) if file.is_dir() else _of_file(file))]
    write(verdicts, output, lambda: _print(verdicts))
    if not all(verdict["valid"] for verdict in verdicts):
        raise typer.Exit(Exit.INVALID_MANIFEST)


def _of_folder(folder: Path) -> list[dict[str, Any]]:
    """Judge all objects of our kinds in the files below a folder, among whatever else."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and _is_shown(path, folder))
    verdicts = [verdict for file in files for verdict in _of_file(file, is_among_others=True)]
    if not verdicts:
        problem = f"there is no {names.KIND} in its {len(files)} files of YAML or JSON"
        return [_bad(folder, None, [SpecError("", problem)])]
    return verdicts


def _is_shown(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _of_file(file: Path, *, is_among_others: bool = False) -> list[dict[str, Any]]:
    try:
        documents = read_documents(file)
        profiles = [each for each in documents if each.get("kind") == names.PROFILE_KIND]
        return [
            *(_verdict(file, each) for each in _jobs(documents, file, may_lack=is_among_others or bool(profiles))),
            *(_verdict(file, each) for each in profiles),
        ]
    except InvalidManifestError as error:  # of the file itself
        return [_bad(file, None, [_within(file, each) for each in error.errors])]


def _jobs(documents: Sequence[Manifest], file: Path, *, may_lack: bool) -> Sequence[Mapping[str, Any]]:
    if may_lack:
        return [each for each in documents if each.get("kind") == names.KIND]
    return jobs_among(documents, file)


def _within(file: Path, error: SpecError) -> SpecError:
    """Return an error of a file with its place in the file, without the file's name."""
    name = "manifest" if file == STDIN else str(file)
    return SpecError(error.path.removeprefix(name).removeprefix(":"), error.problem)


def _verdict(file: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    is_profile = manifest.get("kind") == names.PROFILE_KIND
    try:
        name = validate_profile(manifest).name if is_profile else given_job(manifest).name
    except InvalidManifestError as error:
        metadata = manifest.get("metadata")
        return _bad(file, metadata.get("name") if isinstance(metadata, Mapping) else None, error.errors)
    return {"file": str(file), "name": name, "valid": True, "errors": []}


def _bad(file: Path, name: str | None, errors: Sequence[SpecError]) -> dict[str, Any]:
    listed = [{"path": error.path, "problem": error.problem} for error in errors]
    return {"file": str(file), "name": name, "valid": False, "errors": listed}


def _print(verdicts: list[dict[str, Any]]) -> None:
    for verdict in verdicts:
        where = f"{verdict['file']}: {verdict['name']}" if verdict["name"] else verdict["file"]
        if verdict["valid"]:
            typer.echo(f"{where}: valid")
        for error in verdict["errors"]:
            between = ":" if _POSITION.fullmatch(error["path"]) else ": "
            typer.echo(f"{where}{between * bool(error['path'])}{error['path']}: {error['problem']}")
