"""Batches of which some targets do not count: which ones follows from what they are, so that both sides mask alike."""

from dataclasses import dataclass
from typing import Any

import torch

from pipelinejob_trainer.data.micro_batch import IGNORED, MicroBatch
from pipelinejob_trainer.runtime.feed import Batches
from pipelinejob_trainer.training.preparation import Preparation


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


@dataclass(frozen=True, kw_only=True)
class Uneven:
    """Batches masked by what they are; in even steps, the second half of `num_micro_batches` counts nothing at all.

    Those are a whole replica's, or several; a single process has the same as the later ones of its
    own.
    """

    batches: Any
    num_micro_batches: int
    replicas: int
    has_documents: bool = False

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        read: MicroBatch = self.batches.batch(step, replica, micro_batch)
        number = replica * (self.num_micro_batches // self.replicas) + micro_batch
        counts_nothing = step % 2 == 0 and number >= self.num_micro_batches // 2
        targets = torch.full_like(read.targets, IGNORED) if counts_nothing else masked(read.targets)
        positions = in_documents(read.tokens) if self.has_documents else None
        return read._replace(targets=targets, positions=positions)

    def describe(self, samples: int) -> list[str]:
        return list(self.batches.describe(samples))


def in_documents(tokens: torch.Tensor) -> torch.Tensor:
    """Return positions of two documents a row, the first of 3 to 9 tokens, by what they are."""
    places = torch.arange(tokens.shape[1])
    ends = 3 + tokens[:, :1] % 7
    return torch.where(places < ends, places, places - ends)


def uneven(prepared: Preparation) -> None:
    """Let a run read so, those of a job called `documents` in several of them; a `short` one's are masked alone."""
    plan = prepared.plan
    if prepared.batches is None:
        return
    made: Any = Masked(batches=prepared.batches)
    if plan.name != "short":
        made = Uneven(
            batches=prepared.batches,
            num_micro_batches=plan.schedule.micro_batches * plan.parallelism.data,
            replicas=plan.parallelism.data,
            has_documents=plan.name == "documents",
        )
    prepared.batches = made


def poisoned(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Give cross entropy as a loss of one's own: no number for some micro-batches, by what they are."""
    counts = targets != IGNORED
    rows = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    total = -(rows * counts).sum()
    return total * torch.nan if int(targets[counts].sum()) % 13 == 1 else total, int(counts.sum())
