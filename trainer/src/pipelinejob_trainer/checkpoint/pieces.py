"""Tensors of a checkpoint that lie in several files: each rank's part of what a group divides, or shards.

A file's header says of which whole tensor each of its pieces is a part, so that a reader puts
whole tensors together and any other division can be read from any.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipelinejob.base.values import Value
from pipelinejob_trainer.communication.layer_group import LayerGroup
from pipelinejob_trainer.models.portions import Portion
from pipelinejob_trainer.models.tensor_parallel import Slice

_KEY = "pieces"  # of a file's metadata


class Cut(Value):
    """Rank `rank` of a group of `size` has a part of a tensor: along `dim`, of each of `blocks` stretches."""

    dim: int = 0
    blocks: int = 1
    rank: int = 0
    size: int = 1

    @property
    def way(self) -> tuple[Slice, LayerGroup]:
        """How the tensor is divided, and over which group."""
        return Slice(self.dim, self.blocks), LayerGroup(self.rank, self.size)


class Piece(Cut):
    """What part of a whole tensor, of this shape, a piece is.

    Where a second group divides the part, the piece is what `within` says of it. Where that is
    sharded, it is a stretch of it, flattened, from element `first` on.
    """

    shape: tuple[int, ...]
    within: Cut | None = None
    first: int | None = None

    @property
    def portion(self) -> Portion:
        """The portion of the whole that the piece is, or is a stretch of."""
        cuts = (self, self.within)
        return Portion(self.shape, tuple(each.way for each in cuts if each is not None and each.size > 1))


def piece_of(portion: Portion, first: int | None = None) -> Piece:
    """Return what a rank's portion is, at most twice divided; or its stretch of that, from element `first` on."""
    cuts = [
        {"dim": cut.dim, "blocks": cut.blocks, "rank": group.rank, "size": group.size} for cut, group in portion.cuts
    ]
    outer, within = (*cuts, {}, {})[:2]
    return Piece(shape=portion.shape, within=Cut(**within) if within else None, first=first, **outer)


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
    parts: dict[Piece, list[tuple[Piece, torch.Tensor]]] = {}  # by what their stretches make up
    for piece, tensor in pieces:
        parts.setdefault(piece.model_copy(update={"first": None}), []).append((piece, tensor))
    for part, of_part in parts.items():
        stretches = [each.flatten() for _, each in sorted(of_part, key=lambda each: each[0].first or 0)]
        portion = part.portion
        portion.put(torch.cat(stretches).view(portion.own_shape), whole)
    return whole
