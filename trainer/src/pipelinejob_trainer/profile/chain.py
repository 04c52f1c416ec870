"""Layers one after the other, each a stage of its own, played as a run plays them, and how long that takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

from pipelinejob.spec.job import Precision
from pipelinejob_trainer.base.nesting import Passed
from pipelinejob_trainer.models.losses.loss import Loss, token_cross_entropy
from pipelinejob_trainer.models.part import LayerEntry
from pipelinejob_trainer.profile.memory import Received, own_copy, starting_gradient
from pipelinejob_trainer.profile.stopwatch import Stopwatch
from pipelinejob_trainer.stage.stage import Stage

_MICRO_BATCHES = 4
_EMPTY_ROUNDS = 30


class Passes(NamedTuple):
    """Seconds of a stage's passes: forward, and backward whole (no second half) or in halves."""

    forward_s: float
    backward_s: float
    weight_s: float

    def __sub__(self, other: "Passes") -> "Passes":
        return Passes(*(max(mine - theirs, 0.0) for mine, theirs in zip(self, other, strict=True)))


@dataclass(slots=True)
class Round:
    """Seconds of one round's passes, by layer, then by micro-batch."""

    forward_s: list[list[float]]
    backward_s: list[list[float]]
    weight_s: list[list[float]]

    @classmethod
    def typical(cls, rounds: Sequence["Round"], layer: int, *, micro_batches: int) -> Passes:
        """Return a layer's mean seconds over a step of so many micro-batches.

        The first one of a step differs: its passes find cold caches, and allocate the gradients.
        """

        def typical(of: Callable[["Round"], list[list[float]]]) -> float:
            each = [of(one)[layer] for one in rounds]
            if not each[0]:
                return 0.0
            first, rest = median(one[0] for one in each), median(s for one in each for s in one[1:])
            return (first + (micro_batches - 1) * rest) / micro_batches

        return Passes(
            typical(lambda one: one.forward_s), typical(lambda one: one.backward_s), typical(lambda one: one.weight_s)
        )


class Chain:
    """Layers one after the other, each a stage of its own."""

    def __init__(
        self,
        entries: Sequence[LayerEntry],
        watch: Stopwatch,
        *,
        total: int,
        precision: Precision = Precision.FP32,
        loss: Loss = token_cross_entropy,
        compiles: bool = False,
    ) -> None:
        self._timed = watch.timed
        self._made = partial(Stage, precision=precision, device=watch.device, loss=loss, compiles=compiles)
        self._total = total
        self._whole, self._split = (
            tuple(self.joined([entry], is_split=is_split) for entry in entries) for is_split in (False, True)
        )

    def joined(self, entries: Sequence[LayerEntry], *, is_split: bool) -> Stage:
        """Return one stage of neighbouring layers."""
        is_first, is_last = entries[0].index == 0, entries[-1].index == self._total - 1
        return self._made(entries, is_first=is_first, is_last=is_last, is_split=is_split)

    def stages(self, *, is_split: bool) -> tuple[Stage, ...]:
        """Return the stages, of one layer each."""
        return self._split if is_split else self._whole

    def play(self, received: Received, targets: torch.Tensor | None, *, is_split: bool) -> Round:
        """Run micro-batches through all layers, forward and backward."""
        stages = self.stages(is_split=is_split)
        found = Round([[] for _ in stages], [[] for _ in stages], [[] for _ in stages])
        with stages[0].keeping_casts():
            for k in range(_MICRO_BATCHES):
                output = self._forth(stages, found, k, received, targets)
                self._back(stages, found, k, output, is_split=is_split)
        return found

    def _forth(
        self, stages: Sequence[Stage], found: Round, k: int, received: Received, targets: torch.Tensor | None
    ) -> Passed:
        passed = own_copy(received)
        for stage, seconds in zip(stages, found.forward_s, strict=True):
            with self._timed(seconds):
                output = stage.forward(k, passed, targets if stage.is_last else None, seed=k)
            passed = output
        return output

    def _back(self, stages: Sequence[Stage], found: Round, k: int, output: Passed, *, is_split: bool) -> None:
        gradient = starting_gradient(stages[-1], output)
        for stage, seconds in zip(reversed(stages), reversed(found.backward_s), strict=True):
            run = stage.backward_input if is_split else stage.backward
            with self._timed(seconds):
                gradient = run(k, gradient)
        for stage, seconds in zip(stages, found.weight_s, strict=True) if is_split else ():
            with self._timed(seconds):
                stage.backward_weight(k)


def empty_passes(watch: Stopwatch, *, is_split: bool) -> Passes:
    """Measure what a stage's passes take without compute."""
    chain = Chain([LayerEntry(index=1, name="nothing", module=_Nothing())], watch, total=3)
    received = torch.ones(1, 1, 1, device=watch.device)
    rounds = [chain.play(received, None, is_split=is_split) for _ in range(_EMPTY_ROUNDS)]
    return rounds[0].typical(rounds[1:], 0, micro_batches=_EMPTY_ROUNDS)


class _Nothing(nn.Module):
    """A layer that does almost nothing; its weight and its input both have gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale
