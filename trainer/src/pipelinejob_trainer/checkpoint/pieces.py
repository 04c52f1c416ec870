"""Tensors of a checkpoint that lie in several files: each rank's part of what a group divides, or shards.

A file's header says of which whole tensor each of its pieces is a part, so that a reader puts whole
tensors together and any other division can be read from any.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipelinejob.base.values import Value
from pipelinejob_trainer.communication.layer_group import LayerGroup
from pipelinejob_trainer.models.tensor_parallel import Slice

_KEY = "pieces"  # of a file's metadata


class Piece(Value):
    """What part of a whole tensor a piece is.

    `shape` is the whole's. Of it, rank `rank` of a group of `size` has a part: along `dim`, of each of `blocks`
    stretches. Where that is sharded, the piece is a stretch of it, flattened, from element `first` on.
    """

    shape: tuple[int, ...]
    dim: int = 0
    blocks: int = 1
    rank: int = 0
    size: int = 1
    first: int | None = None

    @property
    def slice(self) -> Slice:
        """How the whole is divided."""
        return Slice(self.dim, self.blocks, self.shape)


class Contents:
    """The tensors of some files, whole ones and pieces, by name."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the files' headers. Raises OSError and SafetensorError."""
        self._held: dict[str, list[tuple[Path, Piece | None]]] = {}
        self._opened: dict[Path, Any] = {file: safe_open(file, framework="pt") for file in files}
        for file, opened in self._opened.items():
            pieces = _read(opened.metadata())
            for name in opened.keys():  # noqa: SIM118 # no dict
                self._held.setdefault(name, []).append((file, pieces.get(name)))

    @property
    def names(self) -> Sequence[str]:
        """The names of all tensors."""
        return tuple(self._held)

    def files(self, names: Iterable[str]) -> Sequence[Path]:
        """Return the files that hold these tensors, or pieces of them."""
        return tuple(dict.fromkeys(file for name in names for file, _ in self._held[name]))

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor. Raises OSError, and SafetensorError where a piece is missing."""
        found = [(piece, self._opened[file].get_tensor(name)) for file, piece in self._held[name]]
        if len(found) == 1 and found[0][0] is None:
            whole: torch.Tensor = found[0][1]
            return whole
        return _assembled(name, [(piece, each) for piece, each in found if piece is not None])


def metadata_of(pieces: Mapping[str, Piece]) -> dict[str, str] | None:
    """Return what a file's header says of its pieces; None where all its tensors are whole."""
    if not pieces:
        return None
    return {_KEY: json.dumps({name: piece.model_dump(exclude_defaults=True) for name, piece in pieces.items()})}


def _read(metadata: Mapping[str, str] | None) -> dict[str, Piece]:
    stated: dict[str, Any] = json.loads((metadata or {}).get(_KEY, "{}"))
    return {name: Piece.model_validate(piece) for name, piece in stated.items()}


def _assembled(name: str, pieces: Sequence[tuple[Piece, torch.Tensor]]) -> torch.Tensor:
    shape = pieces[0][0].shape if pieces else (0,)
    whole = torch.empty(shape, dtype=pieces[0][1].dtype) if pieces else torch.empty(0)
    if sum(each.numel() for _, each in pieces) != whole.numel() or any(piece.shape != shape for piece, _ in pieces):
        raise SafetensorError(f"{name} is not whole: its pieces do not make up {tuple(shape)}")
    parts: dict[int, list[tuple[Piece, torch.Tensor]]] = {}
    for piece, tensor in pieces:
        parts.setdefault(piece.rank, []).append((piece, tensor))
    for rank, of_rank in parts.items():
        piece, group = of_rank[0][0], LayerGroup(rank, of_rank[0][0].size)
        stretches = [each.flatten() for _, each in sorted(of_rank, key=lambda each: each[0].first or 0)]
        part = torch.cat(stretches)
        if piece.size == 1:
            return part.view(shape)
        piece.slice.put(part.view(piece.slice.part_shape(group)), whole, group)
    return whole
