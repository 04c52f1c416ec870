"""Weight versions of an asynchronous step: those in use are kept, each bit for bit as its update left it.

The optimiser changes parameters in place; passes in flight still need what they began with. So a pass does not use the
parameters themselves but **leaves** of its version, tensors of their own that lie on the same memory; and before an
update changes memory that a version in use lies on, the parameters move to a copy. As many copies of the weights are in
memory as versions are live, no more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

Weights = dict[int, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class _Slot:
    """A parameter, and under which names it stands in which layers."""

    parameter: nn.Parameter
    places: tuple[tuple[int, str], ...]


class Versions:
    """The versions of a rank's parameters; version 0 is what a step begins with.

    `layers` are the layers of all the rank's chunks, by their index.
    """

    def __init__(self, layers: Iterable[tuple[int, nn.Module]]) -> None:
        self._slots = _slots(layers)
        self._newest = 0
        self._live: dict[int, Weights] = {}
        self.peak = 0

    @property
    def num_live(self) -> int:
        return len(self._live)

    def begin(self) -> None:
        """Begin a step: what is newest is version 0."""
        self._newest = 0
        self._live = {0: self._leaves()}
        self.peak = max(self.peak, 1)

    def of(self, version: int) -> Weights:
        """Give a version's leaves: for each layer, by its index, by their names in it."""
        return self._live[version]

    def collect(self, version: int) -> None:
        """Move the gradients that a backward pass left on a version's leaves to the parameters."""
        for slot in self._slots:
            index, name = slot.places[0]
            leaf = self._live[version][index][name]
            if leaf.grad is None:
                continue
            if slot.parameter.grad is None:
                slot.parameter.grad = leaf.grad
            else:
                slot.parameter.grad += leaf.grad
            leaf.grad = None

    def make_room(self) -> None:
        """Let the parameters be changed in place; they are the next version then."""
        if self._newest in self._live:
            for slot in self._slots:
                slot.parameter.data = slot.parameter.data.clone()
        self._newest += 1
        self._live[self._newest] = self._leaves()
        self.peak = max(self.peak, self.num_live)

    def drop(self, version: int) -> None:
        """Let go of a version; if it is the newest, the next update changes its memory."""
        del self._live[version]

    def _leaves(self) -> Weights:
        weights: Weights = {}
        for slot in self._slots:
            # .data, for what detach() gives shares the count of changes: autograd would take the next update for one of
            # the leaf's memory.
            leaf = slot.parameter.data.requires_grad_(slot.parameter.requires_grad)
            for index, name in slot.places:
                weights.setdefault(index, {})[name] = leaf
        return weights


def _slots(layers: Iterable[tuple[int, nn.Module]]) -> tuple[_Slot, ...]:
    places: dict[nn.Parameter, list[tuple[int, str]]] = {}
    for index, layer in layers:
        for name, parameter in layer.named_parameters(remove_duplicate=False):
            places.setdefault(parameter, []).append((index, name))
    return tuple(_Slot(parameter, tuple(where)) for parameter, where in places.items())
