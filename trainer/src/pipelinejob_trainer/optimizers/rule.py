"""What an optimiser's rule is given and gives: parameters that are updated together, and their state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Parameters that are updated together, all for the `number`th time; the first is 1.

    All lists are in the same order; gradients are the rule's to change. `decayed` are the places
    of parameters with weight decay, by its strength.
    """

    parameters: Sequence[torch.Tensor]
    gradients: list[torch.Tensor]
    states: Mapping[str, Sequence[torch.Tensor]]
    decayed: Mapping[float, Sequence[int]]
    number: int
    rate: float

    def decay_of(self, place: int) -> float:
        """Return the weight decay of one parameter."""
        return next((strength for strength, places in self.decayed.items() if place in places), 0.0)


class Rule(Protocol):
    """How parameters follow their gradients. Two rules that are equal do the same."""

    @property
    def name(self) -> str:
        """Its name in torch.optim."""

    @property
    def takes_complex(self) -> bool:
        """Whether it updates complex parameters."""

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a parameter's state before its first update, by kind; zeros."""

    def update(self, batch: Batch) -> None:
        """Update parameters and states in place."""


def real(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors, complex ones viewed as pairs of real numbers."""
    if not any(map(torch.is_complex, tensors)):
        return list(tensors)
    return [torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in tensors]
