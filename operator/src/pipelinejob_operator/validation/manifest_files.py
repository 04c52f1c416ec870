"""Reads manifests from YAML (or JSON, which is YAML) as kubectl does: both see the same values.

PyYAML alone would not: to it `3e-3` is a text, `12:30` a number and `2026-11-21` a date.
"""

import json
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelinejob.base.errors import InvalidManifestError, SpecError

Manifest = dict[str, Any]

_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    (
        "tag:yaml.org,2002:bool",
        r"y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON|n|N|no|No|NO|false|False|FALSE|off|Off|OFF",
        "yYtTnNfFoO",
    ),
    ("tag:yaml.org,2002:int", r"[-+]?(0[bB][01_]+|0[xX][0-9a-fA-F_]+|0[oO]?[0-7_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)
_TRUE = {"y", "yes", "true", "on"}
_WHOLE_LIMIT = 1e21  # above, JSON would write the number with an exponent


class _Loader(yaml.SafeLoader):
    """A safe loader with kubectl's idea of scalars, that refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # the library's own class attribute; filled below

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  # PyYAML's signature
        _refuse_odd_keys(node)
        self.flatten_mapping(node)
        return {_key(self.construct_object(key)): self.construct_object(value, deep=deep) for key, value in node.value}


def _refuse_odd_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain text", key.start_mark)
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            problem = f"{key.value} is given twice in one mapping; keep one of them"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        seen.add(key.value)


def _key(key: Any) -> str:
    return json.dumps(key) if key is None or isinstance(key, bool) else str(key)


def _bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() in _TRUE


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    digits = text.lstrip("+-")
    is_old_octal = len(digits) > 1 and digits.isdigit() and digits.startswith("0")
    return int(text, 8) if is_old_octal else int(text, 0)


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    number = float(str(loader.construct_scalar(node)))
    return int(number) if number.is_integer() and abs(number) < _WHOLE_LIMIT else number


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [*_first.replace("\0", ""), ""])
_Loader.add_constructor("tag:yaml.org,2002:bool", _bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def load_manifests(source: Path | str) -> list[Manifest]:
    """Read all documents of a file, or of a text.

    Raises InvalidManifestError, naming line and column, for what is no YAML, holds a key twice or
    holds no mapping.
    """
    name = str(source) if isinstance(source, Path) else "manifest"
    manifests = list(_documents(name, _text(source)))
    if not manifests:
        raise InvalidManifestError([SpecError(name, "there is nothing in it; write a PipelineJob")])
    return manifests


def _text(source: Path | str) -> str:
    if isinstance(source, str):
        return source
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InvalidManifestError([SpecError(str(source), f"cannot be read: {reason}")]) from error


def _documents(name: str, text: str) -> Iterator[Manifest]:
    try:
        for document in yaml.load_all(text, Loader=_Loader):
            if document is None:
                continue
            if not isinstance(document, dict):
                problem = f"{document!r:.60} is no mapping; a manifest begins with apiVersion: and kind:"
                raise InvalidManifestError([SpecError(name, problem)])
            yield document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise InvalidManifestError([SpecError(where, error.problem or "is no YAML")]) from error
    except yaml.YAMLError as error:
        raise InvalidManifestError([SpecError(name, f"is no YAML: {error}")]) from error
