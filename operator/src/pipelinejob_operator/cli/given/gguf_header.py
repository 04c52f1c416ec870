"""How many blocks a GGUF file has, by its own metadata; nothing else of it is read here.

The format: magic, version, numbers of tensors and of fields; then each field's name, type and
value, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 65535  # of a field, as the format has it
_MOST_FIELDS = 10_000


def blocks_of_gguf(file: Path) -> int | None:
    """Return the number of blocks that a file's metadata says; None where it is no such file, or says none."""
    try:
        with file.open("rb") as opened:
            return _blocks(opened)
    except (OSError, ValueError, KeyError, struct.error):
        return None


def _blocks(opened: BinaryIO) -> int | None:
    if opened.read(len(_MAGIC)) != _MAGIC or _number(opened, "<I") not in _VERSIONS:
        return None
    _number(opened, "<Q")  # tensors
    found: dict[str, Any] = {}
    for _ in range(min(_number(opened, "<Q"), _MOST_FIELDS)):
        name = _text(opened, longest=_LONGEST_NAME)
        kind = _number(opened, "<I")
        if name == "general.architecture" and kind == _STRING:
            found[name] = _text(opened, longest=_LONGEST_NAME)
        else:
            found[name] = _value(opened, kind)
        blocks = found.get(f"{found.get('general.architecture')}.block_count")
        if isinstance(blocks, int):
            return blocks
    return None


def _value(opened: BinaryIO, kind: int) -> Any:
    """Read a number; pass over anything else."""
    if kind in _FORMATS:
        return _number(opened, _FORMATS[kind])
    if kind == _STRING:
        opened.seek(_number(opened, "<Q"), 1)
    elif kind == _ARRAY:
        of, count = _number(opened, "<I"), _number(opened, "<Q")
        if of in _FORMATS:
            opened.seek(count * struct.calcsize(_FORMATS[of]), 1)
        else:
            for _ in range(count):
                _value(opened, of)
    else:
        raise ValueError(f"{kind} is no type of a field")
    return None


def _text(opened: BinaryIO, *, longest: int) -> str:
    length = _number(opened, "<Q")
    if length > longest:
        raise ValueError(f"a text of {length} bytes")
    return opened.read(length).decode()


def _number(opened: BinaryIO, form: str) -> Any:
    return struct.unpack(form, opened.read(struct.calcsize(form)))[0]
