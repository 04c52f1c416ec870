"""One chunk of a rank: its layers, and the passes of one micro-batch through them.

Gradients add up in `parameter.grad`, each micro-batch's with the weight that it has in the mean over the global batch,
so that after a step, summed over replicas, they are those of the mean loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn import functional

from pipelinejob.spec import Precision
from pipelinejob_trainer.backward import SplitBackward
from pipelinejob_trainer.engine import accumulate
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.models import LayerEntry
from pipelinejob_trainer.randomness import reseeder
from pipelinejob_trainer.saved import SavedTensors

# A weight version: for each layer, by its index, its parameters by their names in it.
Weights = Mapping[int, dict[str, torch.Tensor]]


@dataclass(slots=True)
class _Pass:
    """One micro-batch's way through the layers: what it went in with, and once it left a graph, what is known of that.

    `root` is the output's place in the graph, which is not the output itself: that is let go of once it is sent.
    """

    received: torch.Tensor
    targets: torch.Tensor | None
    loss_weight: float
    seed: int | None
    weights: Weights | None
    is_recorded: bool = False
    root: GradientEdge | None = None
    entrance: GradientEdge | None = None  # where the first half of a split backward pass goes back to
    saved: SavedTensors | None = None
    split: SplitBackward | None = None


class Stage:
    """The stretch of layers that one chunk is.

    bf16 is autocast: weights, gradients and what is added up stay fp32, matrices are multiplied in bf16. What goes to
    the next stage has the type that the layer gave it, so a split changes no rounding.

    With `recompute` a forward pass keeps only what was received; the backward pass, or its first half, runs the layers
    again, with the same random state and weights. `is_split` says that backward passes come in halves: what only the
    first half needs is let go of after it. What either needs no gradient for, a caller may have done ahead.
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
        self.recomputes = recompute
        self.device = device
        self.first_layer = layers[0].index
        self._entries = tuple(layers)
        self.layers = tuple((layer.index, layer.module) for layer in layers)
        self._precision = precision
        self._is_split = is_split
        self._reseed = reseeder(device)
        self._in_flight: dict[int, _Pass] = {}
        self._loss_weights: dict[float, torch.Tensor] = {}
        self._autocast = self._make_autocast()

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
        passing = self._in_flight[micro_batch] = _Pass(received, targets, loss_weight, seed, weights)
        if not self.recomputes:
            return self._record(passing)
        with torch.no_grad():
            return self._output(passing)

    def keeping_casts(self) -> AbstractContextManager[object]:
        """Hold on to bf16 copies of the weights inside, where the weights must not change.

        Without it each pass casts them anew, and as many copies as micro-batches are in flight are in memory.
        """
        # torch forgets its copies when the outermost autocast ends, even one that is not enabled.
        return torch.autocast(self.device.type, enabled=False) if self._precision is Precision.BF16 else nullcontext()

    @torch.no_grad()
    def evaluate(
        self, received: torch.Tensor, targets: torch.Tensor | None = None, *, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """Run a micro-batch through the layers and keep nothing; the caller puts `module` into eval mode."""
        return self._output(_Pass(received, targets, loss_weight, None, None))

    def prepare_backward(self, micro_batch: int) -> None:
        """Do what of a micro-batch's full backward pass needs no gradient: run the layers again."""
        self._root_of(self._in_flight[micro_batch])

    def backward(self, micro_batch: int, gradient: torch.Tensor | None = None) -> torch.Tensor | None:
        """Run a micro-batch's full backward pass; add to the parameters' gradients.

        `gradient` is that of this stage's output, None on the last stage. Gives the gradient of what was received,
        None on the first stage.
        """
        passing = self._in_flight.pop(micro_batch)
        root = self._root_of(passing)
        if root is not None:
            accumulate((root,), (self._starting_gradient(gradient, passing),))
        return self._given_back(passing.received, passing.received.grad)

    def prepare_backward_input(self, micro_batch: int) -> None:
        """Do what of the first half of a micro-batch's backward pass needs no gradient; find its way, above all."""
        passing = self._in_flight[micro_batch]
        root = self._root_of(passing)
        if root is None:
            return
        assert passing.saved is not None, "a stage whose backward passes come in halves is made with is_split"
        passing.split = SplitBackward(root, passing.entrance, passing.saved)
        passing.root = passing.entrance = passing.targets = None  # so that the split alone says what is held

    def backward_input(self, micro_batch: int, gradient: torch.Tensor | None = None) -> torch.Tensor | None:
        """Run the first half of a micro-batch's backward pass; takes and gives what `backward` does.

        The first stage, which gives no gradient, comes back as far as the output of its first layer.
        """
        passing = self._in_flight[micro_batch]
        if passing.split is None:
            self.prepare_backward_input(micro_batch)
        if passing.split is None:
            return self._given_back(passing.received, None)
        found = passing.split.input_half(self._starting_gradient(gradient, passing))
        return self._given_back(passing.received, found)

    def backward_weight(self, micro_batch: int) -> None:
        """Run the second half of a micro-batch's backward pass: add to the parameters' gradients."""
        split = self._in_flight.pop(micro_batch).split
        if split is not None:
            split.weight_half()

    def _root_of(self, passing: _Pass) -> GradientEdge | None:
        """Give where the backward pass starts; None where there is nothing to derive: no parameters, and of tokens."""
        if not passing.is_recorded:
            self._record(passing)
        return passing.root

    def _starting_gradient(self, given: torch.Tensor | None, passing: _Pass) -> torch.Tensor:
        """Give the gradient of the output, or of the loss, whose weight it is."""
        if not self.is_last:
            assert given is not None, "only the last stage is given no gradient"
            return given
        weight = self._loss_weights.get(passing.loss_weight)
        if weight is None:
            weight = torch.tensor(passing.loss_weight, device=self.device)
            self._loss_weights[passing.loss_weight] = weight
        return weight

    def _record(self, passing: _Pass) -> torch.Tensor:
        """Run the layers so that autograd can come back; give what they returned."""
        if not self.is_first and passing.received.is_floating_point():
            passing.received.requires_grad_()
        passing.is_recorded = True
        output = self._record_for_halves(passing) if self._is_split else self._through_layers(passing)
        passing.root = get_gradient_edge(output) if output.requires_grad else None
        return output.detach() * passing.loss_weight if self.is_last else output.detach()

    def _record_for_halves(self, passing: _Pass) -> torch.Tensor:
        passing.saved = SavedTensors()
        if passing.received.requires_grad:
            passing.entrance = get_gradient_edge(passing.received)
        with passing.saved.keeping():
            return self._through_layers(passing)

    def _output(self, passing: _Pass) -> torch.Tensor:
        output = self._through_layers(passing)
        return output * passing.loss_weight if self.is_last else output

    def _through_layers(self, passing: _Pass) -> torch.Tensor:
        """Give what the last layer returned, or on the last stage the loss, not weighted."""
        output = passing.received
        with self._autocast():
            for index, layer in self.layers:
                if self._is_split and passing.entrance is None and output.requires_grad:
                    passing.entrance = get_gradient_edge(output)  # on the first stage, the first layer's output
                output = self._through_layer(index, layer, output, passing)
        if not self.is_last:
            return output
        assert passing.targets is not None, "the last stage reckons the loss"
        return cross_entropy(output, passing.targets)

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

    def _make_autocast(self) -> Callable[[], AbstractContextManager[object]]:
        if self._precision is Precision.FP32:
            return nullcontext
        # A copy made where no gradient is wanted has none, and would be found by the pass that wants one.
        return lambda: torch.autocast(self.device.type, torch.bfloat16, cache_enabled=torch.is_grad_enabled())

    def _given_back(self, received: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor | None:
        if self.is_first:
            return None
        return torch.zeros_like(received) if found is None else found


def _modules(layers: Sequence[LayerEntry]) -> nn.Module:
    root = nn.Module()
    root.layers = nn.ModuleDict({str(layer.index): layer.module for layer in layers})
    return root.train()


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
