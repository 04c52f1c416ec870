"""Where a stage's backward pass starts, and with which gradients."""

from collections.abc import Sequence
from typing import cast

import torch
from torch.autograd.graph import GradientEdge

from pipelinejob_trainer.base.nesting import Gradients
from pipelinejob_trainer.stage.border import is_no_gradient
from pipelinejob_trainer.stage.passing import Pass

Start = tuple[Sequence[GradientEdge], Sequence[torch.Tensor]]


class LossGradients:
    """On the last stage it starts at the loss, with its weight."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._weights: dict[float, torch.Tensor] = {}

    def starting(self, passing: Pass, given: Gradients | None) -> Start:
        """Return the loss's place in the graph and its weight; nothing is given."""
        assert given is None, "nothing comes after the loss"
        weight = self._weights.get(passing.loss_weight)
        if weight is None:
            weight = self._weights[passing.loss_weight] = torch.tensor(passing.loss_weight, device=self._device)
        return cast(Sequence[GradientEdge], passing.roots), (weight,)


class OutputGradients:
    """On any other it starts at the output's tensors that the next stage gives a gradient for."""

    def __init__(self) -> None:
        self._had_gradient: set[int] = set()  # which tensors of the output have had one

    def starting(self, passing: Pass, given: Gradients | None) -> Start:
        """Return the output's places in the graph and the gradients given for them, in the output's order."""
        assert given is not None, "only the last stage is given no gradient"
        if isinstance(given, torch.Tensor):
            (root,) = passing.roots
            return ((root,), (given,)) if root is not None and self._has_gradient(0, given) else ((), ())
        pairs = [
            (root, each)
            for place, (root, each) in enumerate(zip(passing.roots, given, strict=True))
            if root is not None and self._has_gradient(place, each)
        ]
        return [root for root, _ in pairs], [each for _, each in pairs]

    def _has_gradient(self, place: int, gradient: torch.Tensor) -> bool:
        """Return whether a tensor of the output has a gradient; checked only until there was one."""
        if place in self._had_gradient:
            return True
        if is_no_gradient(gradient):
            return False
        self._had_gradient.add(place)
        return True
