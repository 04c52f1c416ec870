"""What a rank holds of a tensor that groups of ranks divide: a part, or a part of a part."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pipelinejob_trainer.communication.layer_group import LayerGroup
from pipelinejob_trainer.models.tensor_parallel import Slice


@dataclass(frozen=True, slots=True)
class Portion:
    """A rank's portion of a tensor of this shape: each of `cuts` divides what the one before left to the rank."""

    shape: tuple[int, ...]
    cuts: tuple[tuple[Slice, LayerGroup], ...]

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Return the portion's own shape."""
        shape = self.shape
        for cut, group in self.cuts:
            shape = cut.part_shape(group, shape)
        return shape

    def is_over(self, group: LayerGroup) -> bool:
        """Return whether this group divides the tensor."""
        return any(each is group for _, each in self.cuts)

    def runs(self) -> list[tuple[int, int]]:
        """Return where the portion lies in the whole tensor: first elements, and how many from there."""
        shape, found = self.shape, [(0, math.prod(self.shape))]
        for cut, group in self.cuts:
            found = [piece for run in cut.runs(group, shape) for piece in _within(found, *run)]
            shape = cut.part_shape(group, shape)
        return found

    def of_first(self) -> tuple[range, "Portion"]:
        """Return which of the first dimension's entries it has, and what it has of each of these."""
        entries, inner = range(self.shape[0]), []
        for cut, group in self.cuts:
            if cut.dim:
                inner.append((cut, group))
            else:
                entries = entries[slice(*group.bounds(len(entries)))]
        return entries, Portion((1, *self.shape[1:]), tuple(inner))

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the rank's portion of a whole tensor; a copy, contiguous."""
        for cut, group in self.cuts:
            whole = cut.of(whole, group)
        return whole

    def put(self, portion: torch.Tensor, whole: torch.Tensor) -> None:
        """Put the rank's portion where it belongs in a whole tensor."""
        if not self.cuts:
            whole.copy_(portion)
            return
        (cut, group), *inner = self.cuts
        if inner:
            part = cut.of(whole, group)
            Portion(tuple(part.shape), tuple(inner)).put(portion, part)
            portion = part
        cut.put(portion, whole, group)


def _within(runs: Sequence[tuple[int, int]], first: int, length: int) -> Iterator[tuple[int, int]]:
    """Return where elements lie of which these are a stretch, where all of them lie in these runs."""
    for begin, count in runs:
        if 0 <= first < count and length:
            taken = min(length, count - first)
            yield begin + first, taken
            first, length = 0, length - taken
        else:
            first -= count


Slicing = tuple[Mapping[str, Slice], LayerGroup]
"""How a group divides tensors, by name; a slice's shape is that of what it divides."""


def portions(*slicings: Slicing) -> dict[str, Portion]:
    """Return what a rank holds of tensors that some groups divide, the first of them first."""
    found: dict[str, Portion] = {}
    for slices, group in slicings:
        for name, cut in slices.items():
            before = found.get(name, Portion(cut.shape, ()))
            found[name] = Portion(before.shape, (*before.cuts, (cut, group)))
    return found
