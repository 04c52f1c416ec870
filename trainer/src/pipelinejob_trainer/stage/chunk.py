"""A chunk of a rank as the runtime plays it: one stage, or two in a row of which the first computes its layers again.

The border inside a chunk is like one between ranks that stand on one process: what passes it is
handed over as it is, in both directions, and nothing is sent.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from pipelinejob_trainer.base.nesting import Gradients, Passed
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.models.part import LayerEntry
from pipelinejob_trainer.stage.stage import Stage
from pipelinejob_trainer.stage.target_counts import TargetCounts


class Chunk(Protocol):
    """What the runtime asks of a chunk; `Stage` says what each does."""

    @property
    def is_first(self) -> bool: ...
    @property
    def is_last(self) -> bool: ...
    @property
    def recomputes(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def counts(self) -> TargetCounts: ...
    @property
    def last_layer(self) -> str: ...
    @property
    def num_in_flight(self) -> int: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def forward(
        self,
        micro_batch: int,
        received: Passed | Inputs,
        targets: torch.Tensor | None = None,
        *,
        loss_weight: float = 1.0,
        seed: int | None = None,
    ) -> Passed: ...

    def evaluating(self) -> AbstractContextManager[None]: ...

    def keeping_casts(self) -> AbstractContextManager[object]: ...

    def evaluate(
        self, received: Passed | Inputs, targets: torch.Tensor | None = None, *, loss_weight: float = 1.0
    ) -> Passed: ...

    def prepare_backward(self, micro_batch: int) -> None: ...

    def backward(self, micro_batch: int, gradient: Gradients | None = None) -> Gradients | None: ...

    def prepare_backward_input(self, micro_batch: int) -> None: ...

    def backward_input(self, micro_batch: int, gradient: Gradients | None = None) -> Gradients | None: ...

    def backward_weight(self, micro_batch: int) -> None: ...


def make_chunk(
    layers: Sequence[LayerEntry], *, recomputed: int = 0, is_first: bool, is_last: bool, **options: Any
) -> Chunk:
    """Make a chunk whose first `recomputed` layers are computed again; `options` are those of `Stage`."""
    again, kept = layers[:recomputed], layers[recomputed:]
    if not again or not kept:
        return Stage(layers, is_first=is_first, is_last=is_last, recompute=bool(again), **options)
    loss = {"loss": options.pop("loss")} if "loss" in options else {}
    return SelectiveChunk(
        Stage(again, is_first=is_first, is_last=False, recompute=True, **options),
        Stage(kept, is_first=False, is_last=is_last, **options, **loss),
    )


class SelectiveChunk:
    """A chunk whose first layers are computed again, and whose others keep what their backward pass needs."""

    recomputes = True

    def __init__(self, again: Stage, kept: Stage) -> None:
        self._again = again
        self._kept = kept
        self.is_first = again.is_first
        self.is_last = kept.is_last
        self.device = kept.device
        self.counts = kept.counts

    @property
    def last_layer(self) -> str:
        return self._kept.last_layer

    @property
    def num_in_flight(self) -> int:
        return max(self._again.num_in_flight, self._kept.num_in_flight)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter((dict(self._kept.named_parameters()) | dict(self._again.named_parameters())).items())

    def forward(
        self,
        micro_batch: int,
        received: Passed | Inputs,
        targets: torch.Tensor | None = None,
        *,
        loss_weight: float = 1.0,
        seed: int | None = None,
    ) -> Passed:
        between = self._again.forward(micro_batch, received, seed=seed)
        return self._kept.forward(micro_batch, between, targets, loss_weight=loss_weight, seed=seed)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        with ExitStack() as both:
            for stage in (self._again, self._kept):
                both.enter_context(stage.evaluating())
            yield

    def keeping_casts(self) -> AbstractContextManager[object]:
        return self._kept.keeping_casts()  # of all layers that run inside

    def evaluate(
        self, received: Passed | Inputs, targets: torch.Tensor | None = None, *, loss_weight: float = 1.0
    ) -> Passed:
        return self._kept.evaluate(self._again.evaluate(received), targets, loss_weight=loss_weight)

    def prepare_backward(self, micro_batch: int) -> None:
        self._again.prepare_backward(micro_batch)

    def backward(self, micro_batch: int, gradient: Gradients | None = None) -> Gradients | None:
        return self._again.backward(micro_batch, self._kept.backward(micro_batch, gradient))

    def prepare_backward_input(self, micro_batch: int) -> None:
        for stage in (self._again, self._kept):
            stage.prepare_backward_input(micro_batch)

    def backward_input(self, micro_batch: int, gradient: Gradients | None = None) -> Gradients | None:
        return self._again.backward_input(micro_batch, self._kept.backward_input(micro_batch, gradient))

    def backward_weight(self, micro_batch: int) -> None:
        for stage in (self._kept, self._again):
            stage.backward_weight(micro_batch)
