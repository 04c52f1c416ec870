"""Calibrates virtual layers, so that a pass that is said to take 40 ms takes 40 ms of plain torch, and no more.

A layer's waits are exact, but what autograd does around them takes 0.1 to 0.3 ms a pass, cold as
its code is after each wait: no runtime can save it, and none is to be blamed for it. So every
process, before anything is measured, passes a tensor through a layer of that length with nothing
but calls of torch's engine, all processes at once as in the pipeline but with no link between
them, and what the median pass takes longer than its wait comes off the waits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from torch import distributed
from torch.autograd.graph import get_gradient_edge

from pipelinejob.schedules.actions import ActionKind, Schedule
from pipelinejob_trainer.models.virtual import VOCABULARY_SIZE, Virtual
from pipelinejob_trainer.stage.backward.autograd_engine import accumulate, capture

_PASSES = 40
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What torch takes longer than the waits, in seconds: a forward pass, either half of a backward one, a full one."""

    forward_s: float
    input_s: float
    weight_s: float
    backward_s: float

    def waits_ms(self, pass_ms: float, schedule: Schedule) -> tuple[float, float, float]:
        """Return a layer's waits, forward, input and weight, with which each of its passes takes `pass_ms`.

        A layer does not know whether its backward pass is to come in halves. Where a schedule has
        both kinds, what comes off is that of the full pass, which is less.
        """
        half_s = self.backward_s / 2
        kinds = {action.kind for actions in schedule.ranks for action in actions}
        off_s = (half_s, half_s) if ActionKind.BACKWARD in kinds else (self.input_s, self.weight_s)
        forward_ms, input_ms, weight_ms = (pass_ms - 1000 * each for each in (self.forward_s, *off_s))
        return forward_ms, input_ms, weight_ms


def by_chunks(share_ms: float, *, sequence_length: int) -> dict[int, Excess]:
    """Measure for as many chunks a rank as a schedule may have; all of a rank's together take `share_ms`."""
    return {chunks: measure(share_ms / 1000 / chunks, sequence_length=sequence_length) for chunks in (1, 2)}


def measure(seconds: float, *, sequence_length: int) -> Excess:
    """Measure on all ranks at once; all get the mean over ranks. `seconds` are what a pass is to take."""
    distributed.barrier()
    own = torch.tensor(
        [median(each) for each in zip(*_passes(seconds, sequence_length), strict=True)], dtype=torch.float64
    )
    distributed.all_reduce(own)
    forward_s, input_s, weight_s, backward_s = (own / distributed.get_world_size()).tolist()
    return Excess(forward_s=forward_s, input_s=input_s, weight_s=weight_s, backward_s=backward_s)


def _passes(seconds: float, sequence_length: int) -> Iterator[tuple[float, float, float, float]]:
    layer = Virtual(forward_s=seconds, input_s=seconds, weight_s=seconds)
    for _ in range(_PASSES):
        x = torch.zeros(1, sequence_length, VOCABULARY_SIZE, requires_grad=True)
        gradient = torch.zeros(1, sequence_length, VOCABULARY_SIZE)
        output, forward_s = _timed(lambda x=x: layer(x))
        root, entrance = get_gradient_edge(output), get_gradient_edge(x)
        _, input_s = _timed(lambda r=root, g=gradient, e=entrance: capture((r,), (g,), (e,)))
        _, weight_s = _timed(lambda r=root, g=gradient: accumulate((r,), (g,), (layer.scale,)))
        root = get_gradient_edge(layer(x))
        _, backward_s = _timed(lambda r=root, g=gradient: accumulate((r,), (g,)))
        yield forward_s - seconds, input_s - seconds, weight_s - seconds, backward_s - 2 * seconds


def _timed(call: Callable[[], _T]) -> tuple[_T, float]:
    start_s = perf_counter()
    return call(), perf_counter() - start_s
