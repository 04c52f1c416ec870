"""The memory of each layer of a chain, measured while a micro-batch goes forward and backward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipelinejob_trainer.base.nesting import Gradients, Parcel, Passed
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.runtime.device_memory import Level, MemoryWatch, watching
from pipelinejob_trainer.stage.stage import Stage

Received = Passed | Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """Bytes of one layer, as in `costs.layers.LayerCost`."""

    kept: int
    casts: int
    between: int
    working: int
    output: int


def layer_memory(
    stages: Sequence[Stage], received: Received, targets: torch.Tensor, *, is_split: bool
) -> tuple[list[LayerMemory], Passed]:
    """Measure layers that are each a stage of its own, and have gradients.

    Return the last one's output too. A first micro-batch, which does not count, casts parameters
    where that happens once a step.
    """
    with stages[0].keeping_casts(), watching(stages[0].device) as watch:
        first, second = (_Passes(stages, watch, is_split=is_split) for _ in range(2))
        for way in (first, second):
            way.go(received, targets)
    levels = watch.levels()
    entering = [levels[mark] for mark in first.forward]
    return second.memories(levels, entering), second.output


def shared_bytes(alone: Sequence[LayerMemory], together: LayerMemory) -> int:
    """Return what each of some layers keeps that one stage of them keeps once: tables of positions, masks."""
    twice = sum(each.kept for each in alone) - together.kept
    return min(max(twice // (len(alone) - 1), 0), *(each.kept for each in alone))


def starting_gradient(last: Stage, output: Passed) -> Gradients | None:
    """Return a gradient for a chain's output; None for the loss."""
    if last.is_last:
        return None
    return torch.ones_like(output) if isinstance(output, torch.Tensor) else tuple(map(torch.ones_like, output.wanted))


def own_copy(received: Received) -> Received:
    """Return a copy of what a chain's first layer receives, which is the layer's to change."""
    if isinstance(received, torch.Tensor):
        return received.detach().clone()
    if isinstance(received, Inputs):
        return received._replace(tokens=received.tokens.clone())
    return replace(received, leaves=tuple(leaf.detach().clone() for leaf in received.leaves))


class _Passes:
    """One micro-batch's forward and backward passes.

    `forward`, `backward` and `weights` (second halves) are marks from before the first layer to
    after the last one; `sizes` are of each layer's input and of the last output, `gradients` of
    their gradients.
    """

    def __init__(self, stages: Sequence[Stage], watch: MemoryWatch, *, is_split: bool) -> None:
        self._stages = stages
        self._watch = watch
        self._is_split = is_split
        self.forward: list[int] = []
        self._backward: list[int] = []
        self._weights: list[int] = []
        self._sizes: list[int] = []
        self._fresh: list[int] = []
        self._gradients: list[int] = []

    def go(self, received: Received, targets: torch.Tensor) -> None:
        """Run forward and backward."""
        passed: Received = own_copy(received)
        self._sizes.append(passed.nbytes)
        self.forward.append(self._watch.mark())
        for stage in self._stages:
            output = stage.forward(0, passed, targets if stage.is_last else None, seed=0)
            self._sizes.append(output.nbytes)
            self._fresh.append(_fresh_bytes(output, passed))
            self.forward.append(self._watch.mark())
            passed = output
        self.output = output
        self._return(starting_gradient(self._stages[-1], output))

    def _return(self, gradient: Gradients | None) -> None:
        self._gradients.append(_size(gradient))
        self._backward.append(self._watch.mark())
        for stage in reversed(self._stages):
            gradient = (stage.backward_input if self._is_split else stage.backward)(0, gradient)
            self._gradients.append(_size(gradient))
            self._backward.append(self._watch.mark())
        self._weights.append(self._watch.mark())
        for stage in self._stages if self._is_split else ():
            stage.backward_weight(0)
            self._weights.append(self._watch.mark())

    def memories(self, levels: Sequence[Level], entering: Sequence[Level]) -> list[LayerMemory]:
        """Return each layer's memory.

        `entering` are the levels of the forward pass that cast parameters.
        """
        forward, backward, weights = (
            [levels[mark] for mark in marks] for marks in (self.forward, self._backward, self._weights)
        )
        backward.reverse()
        gradients = self._gradients[::-1]
        return [
            _memory(
                forward=(forward[layer], forward[layer + 1]),
                backward=(backward[layer + 1], backward[layer]),
                weights=(weights[layer], weights[layer + 1]) if self._is_split else None,
                casting=(entering[layer], entering[layer + 1]),
                sizes=(self._sizes[layer], self._sizes[layer + 1]),
                fresh=self._fresh[layer],
                gradients=(gradients[layer], gradients[layer + 1]),
            )
            for layer in range(len(self._stages))
        ]


_Step = tuple[Level, Level]  # before and after a layer


def _memory(
    *,
    forward: _Step,
    backward: _Step,
    weights: _Step | None,
    casting: _Step,
    sizes: tuple[int, int],
    fresh: int,
    gradients: tuple[int, int],
) -> LayerMemory:
    """Return one layer's memory; `sizes` and `gradients` are of its input and output.

    `fresh` is what is new in the output.

    A layer's input counts as its own, and during the backward pass the gradient of its output too.
    """
    kept = _rise(forward) - fresh + sizes[0]
    working = [forward[1].peak - forward[1].held, backward[1].peak - backward[0].held + gradients[1]]
    if weights is not None:
        working.append(weights[1].peak - weights[0].held)
    return LayerMemory(
        kept=kept,
        casts=_rise(casting) - _rise(forward),
        between=kept + _rise(backward) - gradients[0] + gradients[1],
        working=max(working),
        output=sizes[1],
    )


def _rise(step: _Step) -> int:
    return step[1].held - step[0].held


def _size(gradient: Gradients | None) -> int:
    if isinstance(gradient, tuple):
        return sum(each.nbytes for each in gradient)
    return 0 if gradient is None else gradient.nbytes


def _fresh_bytes(output: Passed, received: Received) -> int:
    """Count the bytes of an output but for what a nesting carries on of another."""
    if isinstance(output, torch.Tensor) or not isinstance(received, Parcel):
        return output.nbytes
    known = {_memory_of(leaf) for leaf in received.leaves}
    return sum(leaf.nbytes for leaf in output.leaves if _memory_of(leaf) not in known)


def _memory_of(leaf: torch.Tensor) -> int:
    return leaf.untyped_storage().data_ptr()
