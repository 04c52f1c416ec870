"""Reads single tensors of a safetensors file, piece by piece, into memory that is there already.

The library maps files into memory, where what was read counts as the process's own, and its other
backend reads a tensor whole to give a slice of it. The format is small: eight bytes with the
length of a header of JSON, the header, which has type, shape and place of each tensor, then the
bytes (https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.files.folder import bad, few
from pipelinejob_trainer.models.portions import Portion

_PIECE_BYTES = 2**20
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as the library has it
_POINTER = b"version https://git-lfs"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file, or a part of it: its type as the format calls it, shape, and the place of its first byte.

    A part lies in stretches, of which `runs` are the first elements, and how many follow.
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    runs: tuple[tuple[int, int], ...] | None = None

    def part(self, portion: Portion) -> "Stored":
        """Return a rank's portion of a whole tensor, of which nothing else is read."""
        own = replace(portion, shape=self.shape)
        return replace(self, shape=own.own_shape, runs=tuple(own.runs()))

    @property
    def dtype(self) -> torch.dtype:
        """Its type.

        Raises UserError for one that only quantised models use.
        """
        if self.kind not in _DTYPES:
            raise bad(
                f"{self.file}: {self.name} is stored as {self.kind}, which cannot be trained; write the model once in "
                "bf16 (transformers: from_pretrained, dequantize, save_pretrained)"
            )
        return _DTYPES[self.kind]

    @torch.no_grad()
    def read_into(self, tensor: torch.Tensor) -> None:
        """Copy its values into a contiguous tensor of as many elements, of whatever type, on the CPU."""
        flat = tensor.detach().view(-1)
        is_alike = flat.dtype is self.dtype
        for first, piece in self._pieces(into=flat if is_alike else None):
            if not is_alike:
                flat[first : first + piece.numel()].copy_(piece)

    @torch.no_grad()
    def equals(self, tensor: torch.Tensor) -> bool:
        """Tell whether a contiguous tensor on the CPU has its values, in its own type."""
        flat = tensor.detach().view(-1)
        return all(
            torch.equal(piece.to(flat.dtype), flat[first : first + piece.numel()]) for first, piece in self._pieces()
        )

    def _pieces(self, into: torch.Tensor | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Read its values in order, into a tensor or always into the same few megabytes, with each piece's place."""
        count, step = math.prod(self.shape), _PIECE_BYTES // self.dtype.itemsize
        room = torch.empty(min(step, count), dtype=self.dtype) if into is None else into
        place = 0
        with _opened(self.file) as opened:
            for begin, length in self.runs or ((0, count),):
                for first in range(begin, begin + length, step):
                    number = min(step, begin + length - first)
                    piece = room[:number] if into is None else room[place : place + number]
                    self._fill(opened.fileno(), piece, self.start + first * self.dtype.itemsize)
                    yield place, piece
                    place += number

    def _fill(self, descriptor: int, tensor: torch.Tensor, at: int) -> None:
        left = tensor.view(torch.uint8).numpy().data
        while left:
            try:
                count = os.preadv(descriptor, [left], at)
            except OSError as error:
                raise _unreadable(self.file, error) from error
            if count == 0:
                raise bad(f"{self.file} ends within {self.name}; it was cut off while it was read: download it again")
            left, at = left[count:], at + count


def tensors_of(file: Path) -> dict[str, Stored]:
    """Read the header of a file: its tensors by name.

    Raises UserError if it is not there, is no safetensors file, or does not hold all that its
    header speaks of.
    """
    try:
        with _opened(file) as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if _LENGTH_BYTES + length > size or length > _MAX_HEADER_BYTES:
                opened.seek(0)
                raise bad(_no_header(file, opened.read(len(_POINTER)), size))
            header = json.loads(opened.read(length))
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:
        raise bad(f"{file} is no safetensors file: its header is no JSON; download it again") from error
    found = _tensors(file, header, first=_LENGTH_BYTES + length)
    end = max((each.start + _num_bytes(each, header) for each in found.values()), default=0)
    if end > size:
        raise bad(f"{file} is cut off: its header speaks of {end} bytes, and it has {size}; download it again")
    return found


def _opened(file: Path) -> FileIO:
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> UserError:
    return bad(f"{file} cannot be read: {error.strerror}; it must be there, whole, and readable by the stage's user")


def _no_header(file: Path, begin: bytes, size: int) -> str:
    if begin.startswith(_POINTER):
        return f"{file} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
    return f"{file} is no safetensors file, or was cut off within its header ({size} bytes); download it again"


def _tensors(file: Path, header: Mapping[str, Any], *, first: int) -> dict[str, Stored]:
    try:
        found = {
            name: Stored(
                file=file,
                name=name,
                kind=each["dtype"],
                shape=tuple(map(int, each["shape"])),
                start=first + int(each["data_offsets"][0]),
            )
            for name, each in header.items()
            if name != "__metadata__"
        }
        wrong = [name for name, each in found.items() if not _is_consistent(each, header)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise bad(f"{file} is no safetensors file: its header has another form; download it again") from error
    if wrong:
        raise bad(f"{file}: the header gives {few(wrong)} as many bytes as their shapes do not take; download it again")
    return found


def _num_bytes(stored: Stored, header: Mapping[str, Any]) -> int:
    first, end = header[stored.name]["data_offsets"]
    return int(end) - int(first)


def _is_consistent(stored: Stored, header: Mapping[str, Any]) -> bool:
    known = _DTYPES.get(stored.kind)
    return known is None or _num_bytes(stored, header) == math.prod(stored.shape) * known.itemsize
