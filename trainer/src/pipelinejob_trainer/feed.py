"""The text of a step, for a rank whose chunks see any: read ahead, so that nobody waits for it."""

from collections.abc import Iterable
from typing import Protocol

import torch


class Batches(Protocol):
    """What a Dataset gives."""

    def batch(self, step: int, replica: int, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give inputs and targets of a micro-batch."""


class Feed:
    """Inputs for first stages and targets for last ones, each read once and taken once."""

    def __init__(
        self, *, replica: int, device: torch.device, inputs_of: Iterable[int], targets_of: Iterable[int]
    ) -> None:
        """Take the micro-batches whose inputs, and those whose targets, this rank needs."""
        self._replica = replica
        self._device = device
        self._inputs_of = frozenset(inputs_of)
        self._targets_of = frozenset(targets_of)
        self._batches: Batches | None = None
        self._step = 0
        self._inputs: dict[int, torch.Tensor] = {}
        self._targets: dict[int, torch.Tensor] = {}

    def begin(self, batches: Batches | None, step: int) -> None:
        """Name the step that is read from now on; `batches` may be None where no micro-batch's text is needed."""
        self._batches = batches
        self._step = step

    def needs(self, micro_batch: int) -> bool:
        """Say whether this rank needs any of a micro-batch's text."""
        return micro_batch in self._inputs_of or micro_batch in self._targets_of

    def load(self, micro_batch: int) -> None:
        """Read a micro-batch. Raises UserError for text that cannot be used."""
        assert self._batches is not None, "first and last stages have data"
        inputs, targets = self._batches.batch(self._step, self._replica, micro_batch)
        if micro_batch in self._inputs_of:
            self._inputs[micro_batch] = inputs.to(self._device)
        if micro_batch in self._targets_of:
            self._targets[micro_batch] = targets.to(self._device)

    def inputs(self, micro_batch: int) -> torch.Tensor:
        """Give a micro-batch's inputs, and hold them no longer."""
        return self._inputs.pop(micro_batch)

    def targets(self, micro_batch: int) -> torch.Tensor:
        """Give a micro-batch's targets, and hold them no longer."""
        return self._targets.pop(micro_batch)
