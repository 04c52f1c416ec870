"""The files that options name: JSON or YAML read, and what is not as it should be said in one sentence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.fabric import hardware
from pipelinejob.fabric import synthetic as fabric
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.fabric.synthetic import Fabric
from pipelinejob_operator.cli.given.text_files import FileError, read_text
from pipelinejob_operator.validation.manifest_files import load_manifests
from pipelinejob_operator.validation.topology_profiles import NamedProfile, validate_profile


def read_objects(file: Path, option: str, kind: str) -> list[Mapping[str, Any]]:
    """Read a list of Kubernetes objects, as `kubectl get KIND -o json` (or yaml) writes it.

    Raises FileError.
    """
    data = read_data(file, option)
    items = data.get("items") if isinstance(data, dict) else data
    wanted = isinstance(items, list) and all(isinstance(item, dict) and _is_named(item) for item in items)
    if not wanted or not isinstance(items, list):
        all_of = " -A" if kind == "pods" else ""
        raise FileError(
            f"{option} {file}: holds no list of {kind}; write it with `kubectl get {kind}{all_of} -o json > {file}`"
        )
    return items


def _is_named(item: Mapping[str, Any]) -> bool:
    metadata = item.get("metadata")
    return isinstance(metadata, dict) and isinstance(metadata.get("name"), str)


def read_fabric(file: Path) -> Fabric:
    """Read the description of a cluster.

    Raises InvalidManifestError for one that cannot be, FileError for what is no description.
    """
    documents = load_manifests(read_text(file, "--fabric"))
    if len(documents) != 1:
        raise FileError(f"--fabric {file}: holds {len(documents)} documents; describe one fabric in a file")
    try:
        return fabric.read(documents[0])
    except InvalidManifestError as error:
        raise FileError("\n".join(f"--fabric {file}: {each}" for each in error.errors)) from error


def read_topology_profiles(file: Path) -> list[NamedProfile]:
    """Read all TopologyProfiles of a file.

    Raises InvalidManifestError for one that is wrong.
    """
    return [validate_profile(manifest) for manifest in load_manifests(file)]


def read_hardware(file: Path | None) -> Hardware:
    """Read what is known of devices and links: what is packaged, and what a user's file adds to it.

    Raises FileError.
    """
    if file is None:
        return hardware.default()
    try:
        return hardware.default().extended(hardware.parse(read_text(file, "--hardware")))
    except hardware.HardwareError as error:
        raise FileError(f"--hardware {file}: {error}") from error


def read_data(file: Path, option: str) -> Any:
    """Read JSON or YAML.

    Raises FileError.
    """
    text = read_text(file, option)
    try:
        # JSON first: it is what large lists come as, and reads a hundred times faster.
        return json.loads(text) if text.lstrip()[:1] in {"{", "["} else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        if file.suffix in {".yaml", ".yml"}:
            return _flow_yaml(file, option, text)
        raise FileError(f"{option} {file}: is no JSON: {error}") from error
    except yaml.YAMLError as error:
        raise FileError(f"{option} {file}: is neither JSON nor YAML: {_short(error)}") from error


def _flow_yaml(file: Path, option: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FileError(f"{option} {file}: is no YAML: {_short(error)}") from error


def _short(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())
