"""The text of a step, for a rank with a first or last stage; it is read ahead."""

from collections.abc import Iterable
from typing import Protocol

import torch

from pipelinejob_trainer.data.micro_batch import Inputs, MicroBatch


class Batches(Protocol):
    """What a Dataset provides."""

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        """Return a micro-batch."""


class Feed:
    """Inputs for first stages and targets for last ones, each read and taken once."""

    def __init__(
        self, *, replica: int, device: torch.device, inputs_of: Iterable[int], targets_of: Iterable[int]
    ) -> None:
        """`inputs_of`, `targets_of`: the micro-batches whose inputs and targets are needed."""
        self._replica = replica
        self._device = device
        self._inputs_of = frozenset(inputs_of)
        self._targets_of = frozenset(targets_of)
        self._batches: Batches | None = None
        self._step = 0
        self._inputs: dict[int, torch.Tensor | Inputs] = {}
        self._targets: dict[int, torch.Tensor] = {}

    def begin(self, batches: Batches | None, step: int) -> None:
        """Set the step to read; `batches` may be None where this rank needs no text."""
        self._batches = batches
        self._step = step

    def needs(self, micro_batch: int) -> bool:
        """Return whether this rank needs any of a micro-batch's text."""
        return micro_batch in self._inputs_of or micro_batch in self._targets_of

    def load(self, micro_batch: int) -> None:
        """Read a micro-batch. Raises UserError for text that cannot be used."""
        assert self._batches is not None, "first and last stages have data"
        read = self._batches.batch(self._step, self._replica, micro_batch)
        if micro_batch in self._inputs_of:
            tokens = read.tokens.to(self._device, copy=True)  # a copy, which layers may change
            positions = read.positions
            self._inputs[micro_batch] = tokens if positions is None else Inputs(tokens, positions.to(self._device))
        if micro_batch in self._targets_of:
            self._targets[micro_batch] = read.targets.to(self._device)

    def inputs(self, micro_batch: int) -> torch.Tensor | Inputs:
        """Return a micro-batch's inputs, and forget them."""
        return self._inputs.pop(micro_batch)

    def targets(self, micro_batch: int) -> torch.Tensor:
        """Return a micro-batch's targets, and forget them."""
        return self._targets.pop(micro_batch)
