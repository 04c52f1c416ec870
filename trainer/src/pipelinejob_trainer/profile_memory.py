"""What each layer of a chain holds: a micro-batch is sent forth and back, and the levels of memory are read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelinejob_trainer.memory_watch import Level, MemoryWatch, watching
from pipelinejob_trainer.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """Bytes of one layer, as `cost.LayerCost` has them."""

    kept: int
    casts: int
    between: int
    working: int
    output: int


def layer_memory(
    stages: Sequence[Stage], received: torch.Tensor, targets: torch.Tensor, *, is_split: bool
) -> tuple[list[LayerMemory], torch.Tensor]:
    """Measure layers that are each a stage of its own, and have gradients; give what the last one gave, too.

    A micro-batch before the one that counts has parameters cast, where that is done once a step.
    """
    with stages[0].keeping_casts(), watching(stages[0].device) as watch:
        first, second = (_Way(stages, watch, is_split=is_split) for _ in range(2))
        for way in (first, second):
            way.go(received, targets)
    levels = watch.levels()
    entering = [levels[mark] for mark in first.forth]
    return second.memories(levels, entering), second.output


def starting_gradient(last: Stage, output: torch.Tensor) -> torch.Tensor | None:
    """Give a gradient of a chain's output; the loss needs none."""
    return None if last.is_last else torch.ones_like(output)


class _Way:
    """One micro-batch's way forth and back.

    `forth`, `back` and `aside` (the weights' halves) are marks from before the first layer to after the last one;
    `sizes` are of what each layer received, and of what the last one gave; `gradients` of their gradients.
    """

    def __init__(self, stages: Sequence[Stage], watch: MemoryWatch, *, is_split: bool) -> None:
        self._stages = stages
        self._watch = watch
        self._is_split = is_split
        self.forth: list[int] = []
        self._back: list[int] = []
        self._aside: list[int] = []
        self._sizes: list[int] = []
        self._gradients: list[int] = []

    def go(self, received: torch.Tensor, targets: torch.Tensor) -> None:
        """Go there and back."""
        tensor = received.detach().clone()
        self._sizes.append(tensor.nbytes)
        self.forth.append(self._watch.mark())
        for stage in self._stages:
            tensor = stage.forward(0, tensor, targets if stage.is_last else None, seed=0)
            self._sizes.append(tensor.nbytes)
            self.forth.append(self._watch.mark())
        self.output = tensor
        self._return(starting_gradient(self._stages[-1], tensor))

    def _return(self, gradient: torch.Tensor | None) -> None:
        self._gradients.append(_size(gradient))
        self._back.append(self._watch.mark())
        for stage in reversed(self._stages):
            gradient = (stage.backward_input if self._is_split else stage.backward)(0, gradient)
            self._gradients.append(_size(gradient))
            self._back.append(self._watch.mark())
        self._aside.append(self._watch.mark())
        for stage in self._stages if self._is_split else ():
            stage.backward_weight(0)
            self._aside.append(self._watch.mark())

    def memories(self, levels: Sequence[Level], entering: Sequence[Level]) -> list[LayerMemory]:
        """Read the levels; `entering` are those of the way forth before this one, which had parameters cast."""
        forth, back, aside = ([levels[mark] for mark in marks] for marks in (self.forth, self._back, self._aside))
        back.reverse()
        gradients = self._gradients[::-1]
        return [
            _memory(
                forth=(forth[layer], forth[layer + 1]),
                back=(back[layer + 1], back[layer]),
                aside=(aside[layer], aside[layer + 1]) if self._is_split else None,
                casting=(entering[layer], entering[layer + 1]),
                sizes=(self._sizes[layer], self._sizes[layer + 1]),
                gradients=(gradients[layer], gradients[layer + 1]),
            )
            for layer in range(len(self._stages))
        ]


_Step = tuple[Level, Level]  # before and after a layer


def _memory(
    *,
    forth: _Step,
    back: _Step,
    aside: _Step | None,
    casting: _Step,
    sizes: tuple[int, int],
    gradients: tuple[int, int],
) -> LayerMemory:
    """Read one layer's memory; `sizes` and `gradients` are of what it received and gave.

    What a layer received is counted as its own, and while it goes back, the gradient of what it gave, too.
    """
    kept = _rise(forth) - sizes[1] + sizes[0]
    working = [forth[1].peak - forth[1].held, back[1].peak - back[0].held + gradients[1]]
    if aside is not None:
        working.append(aside[1].peak - aside[0].held)
    return LayerMemory(
        kept=kept,
        casts=_rise(casting) - _rise(forth),
        between=kept + _rise(back) - gradients[0] + gradients[1],
        working=max(working),
        output=sizes[1],
    )


def _rise(step: _Step) -> int:
    return step[1].held - step[0].held


def _size(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
