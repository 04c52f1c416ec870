"""What a rank remembers of step borders: its own state at the last two, and copies that it keeps for another rank.

Two, because a rank may be lost between "I have ended step k" and "all have": the others stand at either.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

GENERATIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """All of a rank's state after `step` steps, on the CPU, by kind and global name as in a checkpoint."""

    step: int
    loss: float | None
    samples: int  # consumed so far, by the whole job
    tensors: Mapping[str, torch.Tensor] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """How much memory it takes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Which borders a rank has: its own, and copies of others' by their ranks; steps."""

    own: tuple[int, ...]
    copies: Mapping[int, tuple[int, ...]]


class History:
    """Borders by rank; several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[int, Border] = {}
        self._copies: dict[int, dict[int, Border]] = {}

    def keep(self, border: Border) -> None:
        """Keep this rank's own state at a border, and forget the oldest."""
        with self._lock:
            _keep(self._own, border)

    def keep_copy(self, rank: int, border: Border) -> None:
        """Keep another rank's state at a border."""
        with self._lock:
            _keep(self._copies.setdefault(rank, {}), border)

    def holding(self) -> Holding:
        """Return what there is."""
        with self._lock:
            copies = {rank: tuple(sorted(borders)) for rank, borders in self._copies.items()}
            return Holding(own=tuple(sorted(self._own)), copies=copies)

    def border(self, rank: int | None, step: int) -> Border:
        """Return a rank's state at a border; this rank's own for None."""
        with self._lock:
            return (self._own if rank is None else self._copies[rank])[step]

    def go_back(self, step: int) -> None:
        """Forget this rank's own borders after a step: it will come to them anew."""
        with self._lock:
            self._own = {each: border for each, border in self._own.items() if each <= step}

    def forget_before(self, step: int) -> None:
        """Forget other ranks' borders before a step: nobody goes back so far any more."""
        with self._lock:
            newer = {rank: _from(borders, step) for rank, borders in self._copies.items()}
            self._copies = {rank: borders for rank, borders in newer.items() if borders}

    def clear(self) -> None:
        """Forget all borders."""
        with self._lock:
            self._own.clear()
            self._copies.clear()


def copy_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors to memory that nothing else writes to, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _from(borders: Mapping[int, Border], step: int) -> dict[int, Border]:
    return {each: border for each, border in borders.items() if each >= step}


def _keep(borders: dict[int, Border], border: Border) -> None:
    borders[border.step] = border
    for step in sorted(borders)[:-GENERATIONS]:
        del borders[step]
