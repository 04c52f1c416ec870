"""Batches of which some targets do not count: which ones follows from what they are, so that both sides mask alike."""

from dataclasses import dataclass
from typing import Any

import torch

from pipelinejob_trainer.data.micro_batch import IGNORED, MicroBatch
from pipelinejob_trainer.runtime.feed import Batches


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A dataset's batches, masked; `counts_nothing` masks all of a step's."""

    batches: Any
    counts_nothing: frozenset[int] = frozenset()

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        read: MicroBatch = self.batches.batch(step, replica, micro_batch)
        targets = masked(read.targets) if step not in self.counts_nothing else torch.full_like(read.targets, IGNORED)
        return read._replace(targets=targets)

    def describe(self, samples: int) -> list[str]:
        return list(self.batches.describe(samples))

    def resumed(self, **where: int) -> "Masked":
        return Masked(batches=self.batches.resumed(**where), counts_nothing=self.counts_nothing)


def masked(targets: torch.Tensor) -> torch.Tensor:
    """Mask a quarter of the targets, and some whole sequences: those whose first one is such a byte, too."""
    whole = (targets[:, :1] % 4 == 1).expand_as(targets)
    return torch.where(whole | (targets % 4 == 0), torch.full_like(targets, IGNORED), targets)


class OneMasked:
    """Batches of which one micro-batch counts nothing."""

    def __init__(self, batches: Batches, micro_batch: int) -> None:
        self._batches = batches
        self._micro_batch = micro_batch

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        read = self._batches.batch(step, replica, micro_batch)
        targets = read.targets.clone()
        targets[:, ::3] = IGNORED
        if micro_batch == self._micro_batch:
            targets[:] = IGNORED
        return read._replace(targets=targets)
