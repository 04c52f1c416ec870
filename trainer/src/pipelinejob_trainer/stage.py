"""One chunk of a rank: its layers, and the passes of one micro-batch through them.

Gradients add up in `parameter.grad`, each micro-batch's with the weight that it has in the mean over the global batch,
so that after a step, summed over replicas, they are those of the mean loss.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn import functional

from pipelinejob.spec import Precision
from pipelinejob_trainer.backward import SplitBackward
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.models import LayerEntry
from pipelinejob_trainer.randomness import reseeder
from pipelinejob_trainer.saved import SavedTensors

# A weight version: for each layer, by its index, its parameters by their names in it.
Weights = Mapping[int, dict[str, torch.Tensor]]


@dataclass(slots=True, kw_only=True)
class _Pass:
    """One micro-batch's way through the layers: what it went in with, and once it left a graph, where that starts."""

    received: torch.Tensor
    targets: torch.Tensor | None
    loss_weight: float
    seed: int | None
    weights: Weights | None
    start: "_Start | None" = None
    entrance: GradientEdge | None = None  # where the first half of a split backward pass goes back to
    saved: SavedTensors = field(default_factory=SavedTensors)
    split: SplitBackward | None = None


class Stage:
    """The stretch of layers that one chunk is.

    bf16 is autocast: weights, gradients and what is added up stay fp32, matrices are multiplied in bf16. What goes to
    the next stage has the type that the layer gave it, so a split changes no rounding.

    With `recompute` a forward pass keeps only what was received; the backward pass, or its first half, runs the layers
    again, with the same random state and weights. `is_split` says that backward passes come in halves: what only the
    first half needs is let go of after it.
    """

    def __init__(
        self,
        layers: Sequence[LayerEntry],
        *,
        is_first: bool,
        is_last: bool,
        precision: Precision,
        device: torch.device,
        recompute: bool = False,
        is_split: bool = False,
    ) -> None:
        self.module = _modules(layers).to(device)
        self.is_first = is_first
        self.is_last = is_last
        self.device = device
        self.first_layer = layers[0].index
        self._entries = tuple(layers)
        self.layers = tuple((layer.index, layer.module) for layer in layers)
        self._precision = precision
        self._recompute = recompute
        self._is_split = is_split
        self._reseed = reseeder(device)
        self._in_flight: dict[int, _Pass] = {}
        if is_split:
            _prepare_halves()

    @property
    def num_in_flight(self) -> int:
        """Count the micro-batches that a backward pass, or its second half, is still due of."""
        return len(self._in_flight)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give parameters by their global names, each once; what two layers share has the earlier one's."""
        return iter({name: each for layer in self._entries for name, each in layer.named_parameters()}.items())

    def forward(
        self,
        micro_batch: int,
        received: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        loss_weight: float = 1.0,
        seed: int | None = None,
        weights: Weights | None = None,
    ) -> torch.Tensor:
        """Run a micro-batch through the layers; keep what its backward pass needs.

        `received` are token ids on the first stage, else the previous stage's output. Gives the output for the next
        stage, or on the last stage, which needs `targets`, the loss times `loss_weight`. `seed` sets what layers draw
        (None: whatever torch's state gives), `weights` stand in for the layers' own parameters. Raises UserError when
        a layer returns no tensor.
        """
        passing = _Pass(received=received, targets=targets, loss_weight=loss_weight, seed=seed, weights=weights)
        self._in_flight[micro_batch] = passing
        if self._recompute:
            with torch.no_grad():
                return self._through_layers(passing)
        return self._record(passing)

    @torch.no_grad()
    def evaluate(
        self, received: torch.Tensor, targets: torch.Tensor | None = None, *, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """Run a micro-batch through the layers and keep nothing; the caller puts `module` into eval mode."""
        return self._through_layers(
            _Pass(received=received, targets=targets, loss_weight=loss_weight, seed=None, weights=None)
        )

    def backward(self, micro_batch: int, gradient: torch.Tensor | None = None) -> torch.Tensor | None:
        """Run a micro-batch's full backward pass; add to the parameters' gradients.

        `gradient` is that of this stage's output, None on the last stage. Gives the gradient of what was received,
        None on the first stage.
        """
        passing = self._in_flight.pop(micro_batch)
        start = self._start_of(passing)
        if start is not None:
            start.root(gradient).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        return self._gradient_of(passing.received, passing.received.grad)

    def backward_input(self, micro_batch: int, gradient: torch.Tensor | None = None) -> torch.Tensor | None:
        """Run the first half of a micro-batch's backward pass; takes and gives what `backward` does.

        The first stage, which gives no gradient, comes back as far as the output of its first layer.
        """
        passing = self._in_flight[micro_batch]
        start = self._start_of(passing)
        if start is None:
            return self._gradient_of(passing.received, None)
        passing.split = SplitBackward(start.root(gradient), passing.entrance, passing.saved)
        passing.start = passing.entrance = passing.targets = None  # so that the split alone says what is held
        return self._gradient_of(passing.received, passing.split.input_half())

    def backward_weight(self, micro_batch: int) -> None:
        """Run the second half of a micro-batch's backward pass: add to the parameters' gradients."""
        split = self._in_flight.pop(micro_batch).split
        if split is not None:
            split.weight_half()

    def _start_of(self, passing: _Pass) -> "_Start | None":
        """Give where the backward pass starts; None where there is nothing to derive: no parameters, and of tokens."""
        if self._recompute:
            self._record(passing)
        return passing.start

    def _record(self, passing: _Pass) -> torch.Tensor:
        """Run the layers so that autograd can come back; give what they returned."""
        if not self.is_first and passing.received.is_floating_point():
            passing.received.requires_grad_()
            passing.entrance = get_gradient_edge(passing.received) if self._is_split else None
        with torch.enable_grad(), passing.saved.keeping() if self._is_split else _NOTHING:
            output = self._through_layers(passing)
            passing.start = _Start(output, is_loss=self.is_last) if output.requires_grad else None
        return output.detach()

    def _through_layers(self, passing: _Pass) -> torch.Tensor:
        output = passing.received
        with self._autocast():
            for index, layer in self.layers:
                if index != self.first_layer and self._is_split and passing.entrance is None and output.requires_grad:
                    passing.entrance = get_gradient_edge(output)
                output = self._through_layer(index, layer, output, passing)
        if not self.is_last:
            return output
        assert passing.targets is not None, "the last stage reckons the loss"
        return cross_entropy(output, passing.targets) * passing.loss_weight

    def _through_layer(self, index: int, layer: nn.Module, given: torch.Tensor, passing: _Pass) -> torch.Tensor:
        if passing.seed is not None:
            self._reseed(passing.seed, index)
        output = layer(given) if passing.weights is None else functional_call(layer, passing.weights[index], (given,))
        if not isinstance(output, torch.Tensor):
            raise UserError(
                "BadModel",
                f"layer {index} ({type(layer).__name__}) returned {type(output).__name__}; each layer takes one"
                " tensor and returns one",
            )
        return output

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._precision is Precision.BF16 else _NOTHING

    def _gradient_of(self, received: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor | None:
        if self.is_first:
            return None
        return torch.zeros_like(received) if found is None else found


_NOTHING = nullcontext()


class _Start:
    """Where a backward pass starts: a scalar, which for a stage in the middle has the given gradient behind it.

    It stands for the output, whose memory is given back as soon as the next stage has it. And it is a scalar, for
    torch.autograd.backward(output, gradient), which means the same, imports sympy: seconds of every stage's first step.
    """

    __slots__ = ("_gradient", "_root")

    def __init__(self, output: torch.Tensor, *, is_loss: bool) -> None:
        self._gradient: list[torch.Tensor | None] = []
        self._root: torch.Tensor = output if is_loss else _Seed.apply(output, self._gradient)

    def root(self, gradient: torch.Tensor | None) -> torch.Tensor:
        """Give the scalar, with the gradient of the output behind it."""
        self._gradient.append(gradient)
        return self._root


class _Seed(torch.autograd.Function):
    """A scalar whose gradient with respect to `output` is what is in `gradient` by then."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, output: torch.Tensor, gradient: list[torch.Tensor | None]
    ) -> torch.Tensor:
        ctx.gradient = gradient  # type: ignore[attr-defined] # how torch wants what is no tensor to be kept
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.gradient.pop(), None  # type: ignore[attr-defined] # as above


def _modules(layers: Sequence[LayerEntry]) -> nn.Module:
    root = nn.Module()
    root.layers = nn.ModuleDict({str(layer.index): layer.module for layer in layers})
    return root.train()


def _prepare_halves() -> None:
    # What torch.autograd.backward imports (sympy is in it) as soon as it is given gradients, as second halves give it.
    importlib.import_module("torch.fx.experimental.symbolic_shapes")


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Give the mean over a micro-batch's tokens, in nats.

    `logits` are (batch, sequence, vocabulary), `targets` (batch, sequence). Raises UserError for logits of another
    shape.
    """
    if logits.shape[:-1] != targets.shape:
        raise UserError(
            "BadModel",
            f"the last layer returned shape {tuple(logits.shape)}; it must return logits of shape"
            f" {(*targets.shape, 'vocabulary')}",
        )
    return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
