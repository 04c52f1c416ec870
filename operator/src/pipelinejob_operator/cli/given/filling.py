"""`--fill` and `--write`: what a Hugging Face folder says, written into the manifest that names it.

The manifest stays as its author wrote it, comments and all: lines are inserted, or a value is
replaced in its place. The new text is read again before anything is written; where it would not
say just what it should (anchors, odd forms of YAML), nothing is written and the lines to paste are
said.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from textwrap import wrap
from typing import Any

import typer
import yaml

from pipelinejob.base import names
from pipelinejob.base.errors import InvalidManifestError
from pipelinejob_operator.cli.given.manifests import STDIN
from pipelinejob_operator.cli.given.model_folder import Said, described, filled, path_in, said_of
from pipelinejob_operator.cli.given.text_files import FileError
from pipelinejob_operator.validation.manifest_files import load_manifests

_STEP = 2  # columns from a key to those below it
_WIDTH = 100  # of a line of a list


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edit:
    """A stretch [start, end) of a text, and what takes its place."""

    start: int
    end: int
    text: str


def fill(file: Path, option: str) -> None:
    """Write numLayers and config into every job of a file that names a Hugging Face folder; say what was done.

    Raises InvalidManifestError for what is no YAML, ModelFolderError for a folder that cannot be
    read, FileError where the file cannot be changed.
    """
    if file == STDIN or file.is_dir():
        what = "standard input" if file == STDIN else f"{file}: a folder"
        raise FileError(f"{option}: {what} cannot be written into; name the manifest's file")
    text = _read(file)
    documents = load_manifests(text)
    said = {index: said_of(Path(path)) for index, each in enumerate(documents) if (path := path_in(each)) is not None}
    if not said:
        raise FileError(f"{option} {file}: no job in it has spec.model.huggingFace, so there is nothing to write")
    wanted = [filled(each, said[index]) if index in said else each for index, each in enumerate(documents)]
    if wanted == documents:
        typer.echo(f"{file}: says already what the folder does", err=True)
    else:
        _write(file, option, _changed(text, documents, said), wanted, said)
    for index, each in said.items():
        _tell(documents[index], each)


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", newline="") as opened:  # as it is, line ends too
            return opened.read()
    except (OSError, UnicodeDecodeError):
        load_manifests(file)  # says it as all commands do
        raise


def _write(file: Path, option: str, text: str, wanted: Sequence[Mapping[str, Any]], said: Mapping[int, Said]) -> None:
    if not _reads_as(text, wanted):
        lines = "\n".join(line for each in said.values() for line in _block(each.fields, 4, "\n"))
        raise FileError(
            f"{option} {file}: its YAML cannot be changed in place; write this into spec.model yourself:\n{lines}"
        )
    try:
        _replace(file.resolve(), text)
    except OSError as error:
        raise FileError(f"{option} {file}: {error.strerror}; name a file that can be written") from error
    typer.echo(f"wrote {file}", err=True)


def _replace(file: Path, text: str) -> None:
    """Put a file in the place of another at once, so that a full disk takes no manifest away."""
    with NamedTemporaryFile(
        "w", dir=file.parent, prefix=f".{file.name}.", encoding="utf-8", newline="", delete=False
    ) as new:
        try:
            new.write(text)
            new.flush()
            shutil.copymode(file, new.name)
            Path(new.name).replace(file)
        except OSError:
            Path(new.name).unlink()
            raise


def _tell(manifest: Mapping[str, Any], said: Said) -> None:
    metadata = manifest.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, Mapping) else ""
    typer.echo(f"{name or names.KIND}: {described(said)}, from {path_in(manifest)}", err=True)


def _reads_as(text: str, wanted: Sequence[Mapping[str, Any]]) -> bool:
    try:
        return load_manifests(text) == list(wanted)
    except InvalidManifestError:
        return False


def _changed(text: str, documents: Sequence[Mapping[str, Any]], said: Mapping[int, Said]) -> str:
    """Return the text with each document's fields in place."""
    nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if not _is_empty(node)]
    assert len(nodes) == len(documents), "both read the same text"
    edits = [edit for index, each in said.items() for edit in _edits(text, _below(nodes[index], "spec", "model"), each)]
    for edit in sorted(edits, key=lambda each: each.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _is_empty(node: yaml.Node | None) -> bool:
    return node is None or node.tag == "tag:yaml.org,2002:null"


def _below(node: yaml.Node, *path: str) -> yaml.MappingNode:
    for name in path:
        node = next(value for key, value in node.value if key.value == name)
    assert isinstance(node, yaml.MappingNode), "the folder's path was found below it"
    return node


def _edits(text: str, model: yaml.MappingNode, said: Said) -> list[_Edit]:
    """Replace the fields of `spec.model` that are there, and insert the others behind its folder."""
    there = {key.value: value for key, value in model.value}
    edits = [
        _Edit(start=node.start_mark.index, end=_end(node), text=_in_place(text, node, value))
        for name, value in said.fields.items()
        if (node := there.get(name)) is not None
    ]
    absent = {name: value for name, value in said.fields.items() if name not in there}
    return [*edits, _insertion(text, model, there["huggingFace"], absent)] if absent else edits


def _insertion(text: str, model: yaml.MappingNode, after: yaml.Node, fields: Mapping[str, Any]) -> _Edit:
    if model.flow_style:
        said = "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items())
        return _Edit(start=_end(after), end=_end(after), text=said)
    newline = "\r\n" if "\r\n" in text else "\n"
    line_end = text.find("\n", _end(after))
    at = len(text) if line_end < 0 else line_end + 1
    lines = _block(fields, model.start_mark.column, newline)
    before = "" if at == 0 or text[at - 1] == "\n" else newline
    return _Edit(start=at, end=at, text=before + "".join(line + newline for line in lines))


def _in_place(text: str, node: yaml.Node, value: Any) -> str:
    """Write a value where another stands: a mapping of lines as such, all else on one line."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and isinstance(value, Mapping):
        newline = "\r\n" if "\r\n" in text else "\n"
        return newline.join(_block(value, node.start_mark.column, newline)).lstrip(" ")
    return json.dumps(value)


def _end(node: yaml.Node) -> int:
    """Return where the last character of a value is; a mapping of lines ends itself where the next thing begins."""
    while isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _block(fields: Mapping[str, Any], column: int, newline: str) -> list[str]:
    """Write fields as lines of YAML that begin at a column."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines += [f"{' ' * column}{name}:", *_block(value, column + _STEP, newline)]
        else:
            lines.append(f"{' ' * column}{name}: {_plain(value, column, newline)}")
    return lines


def _plain(value: Any, column: int, newline: str) -> str:
    """Write a value without quotes where it reads as the same text; a long list over several lines."""
    if isinstance(value, str) and _reads_as(f"value: {value}", [{"value": value}]):
        return value
    indent = " " * (column + _STEP)
    return f"{newline}{indent}".join(wrap(json.dumps(value), _WIDTH, break_long_words=False, break_on_hyphens=False))
