"""What a rank remembers of step borders: its own state at the last two, and copies that it keeps for another rank.

Two, because a rank may be lost between "I have ended step k" and "all have": the others stand at
either. Where the layers are divided among the ranks anew, what was kept by the old layout stays
until a step is done by the new one.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch

GENERATIONS = 2
Layers = tuple[tuple[tuple[int, int], ...], ...]
"""A layout: the stretches of layers [first, end) that each stage's rank has."""


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
    """Which borders a rank has: its own, copies of others' by their ranks, and those by an earlier layout; steps."""

    own: tuple[int, ...]
    copies: Mapping[int, tuple[int, ...]]
    earlier: tuple[int, ...] = ()


class History:
    """Borders by rank; several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[int, Border] = {}
        self._copies: dict[int, dict[int, Border]] = {}
        self._layout: Layers = ()
        self._earlier: list[Border] = []

    @property
    def layout(self) -> Layers:
        """By which layout borders are kept now."""
        with self._lock:
            return self._layout

    def go_over_to(self, layout: Layers) -> None:
        """Keep borders by another layout from now on, and what there is until a step is done by it."""
        with self._lock:
            if layout != self._layout:
                self._earlier += [*self._own.values(), *(each for of in self._copies.values() for each in of.values())]
                self._own, self._copies, self._layout = {}, {}, layout

    def keep(self, border: Border) -> None:
        """Keep this rank's own state at a border, and forget the oldest."""
        with self._lock:
            _keep(self._own, border)
            if all(border.step > each.step for each in self._earlier):
                self._earlier.clear()

    def keep_copy(self, rank: int, border: Border, *, layout: Layers | None = None) -> None:
        """Keep another rank's state at a border, by the present layout or the one that it was sent by."""
        with self._lock:
            if layout is None or layout == self._layout:
                _keep(self._copies.setdefault(rank, {}), border)
            else:
                self._earlier.append(border)

    def holding(self) -> Holding:
        """Return what there is."""
        with self._lock:
            copies = {rank: tuple(sorted(borders)) for rank, borders in self._copies.items()}
            earlier = tuple(sorted({each.step for each in self._earlier}))
            return Holding(own=tuple(sorted(self._own)), copies=copies, earlier=earlier)

    def border(self, rank: int | None, step: int) -> Border:
        """Return a rank's state at a border; this rank's own for None."""
        with self._lock:
            return (self._own if rank is None else self._copies[rank])[step]

    def names(self) -> dict[int, tuple[str, ...]]:
        """Return the names of all tensors that there are of each step, by whatever layout, whosever they are."""
        with self._lock:
            found: dict[int, set[str]] = {}
            for border in self._all():
                found.setdefault(border.step, set()).update(border.tensors)
            return {step: tuple(sorted(names)) for step, names in found.items()}

    def part(self, step: int, names: Collection[str]) -> Border:
        """Return these tensors as they were after a step, at which this rank has them all."""
        with self._lock:
            borders = [each for each in self._all() if each.step == step]
        tensors = {name: each.tensors[name] for each in borders for name in names if name in each.tensors}
        return replace(borders[0], tensors=tensors)

    def go_back(self, step: int) -> None:
        """Forget this rank's own borders after a step, and all by an earlier layout: it will come to them anew."""
        with self._lock:
            self._own = {each: border for each, border in self._own.items() if each <= step}
            self._earlier = [border for border in self._earlier if border.step <= step]

    def forget_before(self, step: int) -> None:
        """Forget other ranks' borders before a step: nobody goes back so far any more."""
        with self._lock:
            self._earlier = [border for border in self._earlier if border.step >= step]
            newer = {rank: _from(borders, step) for rank, borders in self._copies.items()}
            self._copies = {rank: borders for rank, borders in newer.items() if borders}

    def clear(self) -> None:
        """Forget all borders."""
        with self._lock:
            self._own.clear()
            self._copies.clear()
            self._earlier.clear()

    def _all(self) -> list[Border]:
        copies = (each for of in self._copies.values() for each in of.values())
        return [*self._own.values(), *copies, *self._earlier]


def copy_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors to memory that nothing else writes to, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _from(borders: Mapping[int, Border], step: int) -> dict[int, Border]:
    return {each: border for each, border in borders.items() if each >= step}


def _keep(borders: dict[int, Border], border: Border) -> None:
    borders[border.step] = border
    for step in sorted(borders)[:-GENERATIONS]:
        del borders[step]
