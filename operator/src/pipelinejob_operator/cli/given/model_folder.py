"""A Hugging Face model's folder on this machine: what a manifest should say of it.

Only `config.json` is read, or the metadata of a GGUF file; nothing of the folder is run. The
operator itself never looks into it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from pipelinejob.base.errors import PipelineJobError, SpecError
from pipelinejob.models.huggingface import decoder_of_config
from pipelinejob.models.sizes import blocks_of_config, sizes_of_config
from pipelinejob_operator.cli.given.gguf_header import blocks_of_gguf

_FIELD = "spec.model.huggingFace.path"
_CONFIG = "config.json"
_GGUF = ".gguf"


class ModelFolderError(PipelineJobError):
    """The folder of a manifest's model is not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a manifest says of a folder.

    `config` is None, and `uncounted` says why, where its layers cannot be counted.
    """

    num_layers: int
    config: Mapping[str, Any] | None
    uncounted: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `spec.model`."""
        return {"numLayers": self.num_layers, **({} if self.config is None else {"config": dict(self.config)})}


def path_in(manifest: Mapping[str, Any]) -> str | None:
    """Return the folder that a manifest, valid or not, names for its model; None if it names none."""
    part: Any = manifest
    for name in ("spec", "model", "huggingFace"):
        part = part.get(name) if isinstance(part, Mapping) else None
    path = part.get("path") if isinstance(part, Mapping) else None
    return path if isinstance(path, str) and path else None


def said_of(folder: Path) -> Said:
    """Read what a manifest should say of a folder.

    Raises ModelFolderError if the folder, or its config.json, is not there or cannot be read so.
    """
    gguf = _gguf(folder)
    if gguf is not None:
        return _said_of_gguf(gguf)
    config = _read(folder)
    blocks = blocks_of_config(config)
    if blocks is None:
        raise ModelFolderError(
            f"{_FIELD}: {folder / _CONFIG} does not say how many layers there are (num_hidden_layers); give "
            "spec.model.numLayers yourself: the blocks and two more, for embedding and head"
        )
    try:
        return Said(num_layers=blocks + 2, config=sizes_of_config(config))
    except SpecError as error:
        return Said(num_layers=blocks + 2, config=None, uncounted=str(error))


def _gguf(path: Path) -> Path | None:
    """Return the GGUF file that is named, or that is all that a folder has of a model."""
    if path.is_file():
        return path if path.suffix == _GGUF else None
    found = sorted(path.glob(f"*{_GGUF}"))
    return found[0] if len(found) == 1 and not any(path.glob("*.safetensors*")) else None


def _said_of_gguf(gguf: Path) -> Said:
    blocks = blocks_of_gguf(gguf)
    if blocks is None:
        raise ModelFolderError(
            f"{_FIELD}: {gguf} says no number of blocks, as GGUF of version 2 or 3 does; download it again"
        )
    return Said(num_layers=blocks + 2, config=None, uncounted=f"{gguf.name} is GGUF, of which stages alone read more")


def filled(manifest: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """Return a manifest that says so of its folder."""
    spec = manifest["spec"]  # not copied deeply: what YAML's aliases have in common must not change elsewhere
    return {**manifest, "spec": {**spec, "model": {**spec["model"], **said.fields}}}


def with_its_model(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a manifest with what it lacks of its model's folder, if that is on this machine, and say so.

    What it says itself stays. Raises ModelFolderError for a folder that is there, but is no
    model's.
    """
    path = path_in(manifest)
    model = manifest["spec"]["model"] if path is not None else {}
    is_whole = None not in (model.get("numLayers"), model.get("config"))
    if path is None or is_whole or not (Path(path).is_dir() or _gguf(Path(path))):
        return manifest
    said = said_of(Path(path))
    typer.echo(f"read of {path}: {described(said)}", err=True)
    lacking = {name: value for name, value in said.fields.items() if model.get(name) is None}
    return {**manifest, "spec": {**manifest["spec"], "model": {**model, **lacking}}}


def described(said: Said) -> str:
    """Say what a manifest says of a folder now."""
    if said.config is None:
        return f"numLayers {said.num_layers}; no config, so it is planned as one of unknown costs: {said.uncounted}"
    note = decoder_of_config(said.config).note
    return f"numLayers {said.num_layers} and config of {len(said.config)} fields{f' ({note})' if note else ''}"


def _read(folder: Path) -> Mapping[str, Any]:
    # A stage reads the same file, and says what is wrong in its own words (the trainer's
    # `models/huggingface/files/ folder.py`): the two packages never import each other, and the
    # core reads no files.
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder on this machine"
        raise ModelFolderError(
            f"{_FIELD}: {folder}: {what}; call this where the model's folder is at that path, or give "
            "spec.model.numLayers yourself (num_hidden_layers of its config.json and two)"
        )
    file = folder / _CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFolderError(
            f"{_FIELD}: {folder}: holds no {_CONFIG}; name a folder as save_pretrained or a download writes it"
        ) from error
    except OSError as error:
        raise ModelFolderError(f"{_FIELD}: {file}: {error.strerror}; name a folder that can be read") from error
    except ValueError as error:
        raise ModelFolderError(f"{_FIELD}: {file}: is no JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise ModelFolderError(f"{_FIELD}: {file}: is no mapping of fields to values; download it again")
    return config
