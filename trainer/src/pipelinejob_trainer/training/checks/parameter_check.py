"""Checks that forward passes do not change parameters: only the optimiser may.

The optimiser updates the parameters that the layers were made with, and reductions sum the
gradients of those that a layer has among its own. Anything else that passes do to parameters would
be trained differently than in plain torch, or differently on each rank; it is found in the first
step, before anything is updated.
"""

from collections.abc import Iterator

import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.identity import layer_of
from pipelinejob_trainer.runtime.rank import Rank


class ParameterCheck:
    """A rank's parameters, as they were before its passes."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._parameters = rank.part.named_parameters()
        self._counts: dict[str, int] = {}

    def begin(self) -> None:
        """Record the parameters as they are now, resumed or new."""
        for parameter in self._elsewhere().values():
            parameter.grad = None  # a preflight's
        self._counts = self._counts_of_copies()

    def check(self) -> None:
        """Check what passes have done since `begin`.

        What an update changes is checked in the first step only. Raises UserError for what plain
        torch, another rank or a resumed run would not have.
        """
        self._check_objects()
        self._check_elsewhere()
        self._check_copies()

    def _check_objects(self) -> None:
        now = self._rank.part.named_parameters()
        for name in sorted(now.keys() | self._parameters.keys()):
            if now.get(name) is not self._parameters.get(name):
                raise UserError(
                    "ParameterReplaced",
                    f"{_where(name)} was made, replaced or taken away by a forward pass, and the optimiser goes on with"
                    " those that the layer was made with; make parameters in the layer's constructor and change them in"
                    " place, or make this one a buffer",
                )

    def _check_elsewhere(self) -> None:
        layers = ", ".join(str(layer.index) for layer in self._rank.part.layers)
        for name, parameter in self._elsewhere().items():
            if parameter.grad is not None:
                raise UserError(
                    "HiddenParameter",
                    f"{_where(name)} is used by another of layers {layers} too, which does not have it among its"
                    " parameters, so its gradients are not added up; register it there (self.weight ="
                    " embedding.weight): what two modules have is tied, wherever they stand",
                )

    def _check_copies(self) -> None:
        before, self._counts = self._counts, {}
        now = self._counts_of_copies()
        for name, count in before.items():
            if now[name] != count:
                raise UserError(
                    "ParameterChanged",
                    f"{_where(name)} is trained, has several copies, on several ranks or as weight versions of an"
                    " asynchronous schedule, and was changed by a forward pass, each copy by its own micro-batches"
                    " (nn.Embedding's max_norm does that); do without, or use one replica and a synchronous schedule of"
                    " one direction",
                )

    def _elsewhere(self) -> dict[str, torch.Tensor]:
        """Return trained parameters of other ranks' layers that are in this process too."""
        found = ((name, parameter()) for name, parameter in self._rank.part.elsewhere.items())
        return {name: parameter for name, parameter in found if parameter is not None}

    def _counts_of_copies(self) -> dict[str, int]:
        """Return torch's change counts of trained parameters with copies.

        Updates within a step do not count.
        """
        return {name: self._parameters[name]._version for name in self._copied()}  # noqa: SLF001 # as in saved.py

    def _copied(self) -> Iterator[str]:
        layout = self._rank.layout
        shares = layout.shares(self._rank.part)
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and (layout.schedule.is_asynchronous or len(shares[name].ranks) > 1):
                yield name


def _where(name: str) -> str:
    return f"spec.model.entrypoint: layer {layer_of(name)}: parameter {name}"
