"""One chunk of a rank: its layers, and the passes of a micro-batch through them.

Gradients add up in `parameter.grad`, each micro-batch's with its weight in the mean over the
global batch, so that after a step, summed over replicas, they are those of the mean loss: over all
targets, of which those that do not count add nothing (`loss.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge, increment_version

from pipelinejob.spec.job import Precision
from pipelinejob_trainer.base.errors import ChangedInPlaceError, LayerError, UserError
from pipelinejob_trainer.base.nesting import Gradients, Parcel, Passed, Structure, flatten, parcel, paths
from pipelinejob_trainer.base.user_code import named
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.models.losses.loss import Loss, token_cross_entropy
from pipelinejob_trainer.models.master_weights import to_training
from pipelinejob_trainer.models.part import LayerEntry
from pipelinejob_trainer.stage.backward.autograd_engine import accumulate
from pipelinejob_trainer.stage.backward.autograd_functions import RunsAgain
from pipelinejob_trainer.stage.backward.output_gradients import LossGradients, OutputGradients
from pipelinejob_trainer.stage.backward.saved_tensors import SavedTensors
from pipelinejob_trainer.stage.backward.split_backward import SplitBackward
from pipelinejob_trainer.stage.border import (
    Entering,
    as_in_training,
    changeable,
    copied,
    no_gradient,
    require_gradients,
)
from pipelinejob_trainer.stage.layer_state import LayerState, preserving_layer_state
from pipelinejob_trainer.stage.layers_run import LayersRun
from pipelinejob_trainer.stage.passing import Pass, as_it_is, begin, without_gradients
from pipelinejob_trainer.stage.target_counts import TargetCounts
from pipelinejob_trainer.stage.weights import Weights

_OF_A_LEAF = "leaf Variable that requires grad is being used in an in-place operation"  # in autograd's
_PASSES_WITHOUT_CHANGE = 8  # after which layers are taken not to change in place what they are given, until they do


class Stage:
    """The layers of one chunk.

    bf16 is autocast: weights, gradients and sums stay fp32, matrices are multiplied in bf16. The
    output has the type that the last layer gave it, so a split changes no rounding.

    With `recompute` a forward pass keeps only what was received; the backward pass, or its first
    half, runs the layers again, with the same random state and weights, on copies of their other
    state, so that it changes only once. With `is_split` backward passes come in halves, and what
    only the first half needs is freed after it. Work that needs no gradient can be done earlier,
    by the `prepare_` methods.

    What is received belongs to the stage: its layers may change it in place. It is a tensor or a
    nesting of tensors, as is the output.

    `loss` takes the last layer's output and targets on the last stage. `weights` are those of
    layers that hold their values only while a pass needs them.
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
        loss: Loss = token_cross_entropy,
        is_asynchronous: bool = False,
        compiles: bool = False,
        weights: Weights | None = None,
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
        self._is_asynchronous = is_asynchronous
        self._layers = LayersRun(
            layers,
            loss if is_last else None,
            is_first=is_first,
            is_split=is_split,
            precision=precision,
            compiles=compiles,
            device=device,
            weights=weights,
            watches_gradients=recompute or is_asynchronous,
        )
        self._state = LayerState([self.module])
        self._runs_again = RunsAgain()
        self._may_change = True  # whether layers may change in place what they are given
        self._passes_without_change = 0
        # Autocast keeps its copies of leaves for a whole step, and adds up what comes back to them
        # in bf16, as between two layers of one process it does not. And what keeps anything, or is
        # run again, may not be begun twice.
        keeps_anything = recompute or any(True for _ in self.module.buffers())
        self._is_never_leaf = keeps_anything or precision is Precision.BF16
        self._needs_gradients: bool | None = None  # whether layers derive within their forward pass, once it is known
        self._is_wanted: dict[Structure, tuple[bool, ...]] = {}  # what needs a gradient of an output without a graph
        self._in_flight: dict[int, Pass] = {}
        self._gradients = LossGradients(device) if is_last else OutputGradients()
        self.counts = TargetCounts(device)

    @property
    def last_layer(self) -> str:
        """The name of the layer that makes the output, for messages."""
        return named(*self.layers[-1])

    @property
    def num_in_flight(self) -> int:
        """The number of micro-batches whose backward pass, or its second half, is still to come."""
        return len(self._in_flight)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return parameters by their global names, each once.

        A shared one has the earlier layer's name.
        """
        return iter({name: each for layer in self._entries for name, each in layer.named_parameters()}.items())

    def forward(
        self,
        micro_batch: int,
        received: Passed | Inputs,
        targets: torch.Tensor | None = None,
        *,
        loss_weight: float = 1.0,
        seed: int | None = None,
    ) -> Passed:
        """Run a micro-batch through the layers; keep what its backward pass needs.

        `received` are token ids on the first stage, else the previous stage's output. Returns the
        output for the next stage, or on the last stage, which needs `targets`, the loss times
        `loss_weight`. `seed` sets the random state (None: torch's own). Raises UserError when a
        layer returns what no border can carry.
        """
        passing = begin(received, targets, loss_weight, seed)
        passing.is_alone = self._is_asynchronous
        self._in_flight[micro_batch] = passing
        output = self._run_without_graph(passing) if self.recomputes else self._run_with_graph(passing)
        self.counts.add(passing)
        return output

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set the layers to eval mode inside; their state is restored afterwards."""
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        with preserving_layer_state([self.module]):
            yield
        for module, mode in modes:
            module.training = mode

    def keeping_casts(self) -> AbstractContextManager[object]:
        """Keep bf16 copies of the weights inside, where the weights must not change.

        Without it each pass casts them anew, and memory holds as many copies as micro-batches are
        in flight.
        """
        # torch forgets its copies when the outermost autocast ends, even one that is not enabled.
        return torch.autocast(self.device.type, enabled=False) if self._precision is Precision.BF16 else nullcontext()

    @torch.no_grad()
    def evaluate(
        self, received: Passed | Inputs, targets: torch.Tensor | None = None, *, loss_weight: float = 1.0
    ) -> Passed:
        """Run a micro-batch through the layers and keep nothing; see `evaluating`."""
        passing = begin(received, targets, loss_weight, None)
        output = self._output(passing, as_it_is(passing.received))
        self.counts.add(passing)
        return output if isinstance(output, torch.Tensor) else without_gradients(output)

    def prepare_backward(self, micro_batch: int) -> None:
        """Do the part of a full backward pass that needs no gradient: run the layers again."""
        self._record(self._in_flight[micro_batch])

    def backward(self, micro_batch: int, gradient: Gradients | None = None) -> Gradients | None:
        """Run a micro-batch's full backward pass; add to the parameters' gradients.

        `gradient` is that of this stage's output, None on the last stage. Returns the gradient of
        what was received, None on the first stage.
        """
        passing = self._in_flight.pop(micro_batch)
        self._record(passing)
        roots, gradients = self._gradients.starting(passing, gradient)
        if roots:
            try:
                accumulate(roots, gradients)
            except BaseException as error:  # noqa: BLE001 # a user's code may raise anything
                self._layers.backward_raised(error, passing, gradients)
        return self._input_gradient(passing, [leaf.grad for leaf in passing.wanted])

    def prepare_backward_input(self, micro_batch: int) -> None:
        """Do the part of the first half that needs no gradient; above all, find its path."""
        passing = self._in_flight[micro_batch]
        self._record(passing)
        roots = [root for root in passing.roots if root is not None]
        if not roots:
            return
        assert passing.saved is not None, "a stage whose backward passes come in halves is made with is_split"
        passing.split = SplitBackward(roots, passing.entrances, passing.saved, self._runs_again)
        passing.entrances = ()  # so that the split alone says what is held
        passing.targets = None

    def backward_input(self, micro_batch: int, gradient: Gradients | None = None) -> Gradients | None:
        """Run the first half of a micro-batch's backward pass.

        Arguments and result are those of `backward`. On the first stage, which returns no
        gradient, it ends at the output of the first layer.
        """
        passing = self._in_flight[micro_batch]
        if passing.split is None:
            self.prepare_backward_input(micro_batch)
        roots, gradients = self._gradients.starting(passing, gradient)
        passing.roots = ()
        if passing.split is None or not roots:
            passing.split = None
            return self._input_gradient(passing, [None] * len(passing.wanted))
        try:
            found = passing.split.input_half(roots, gradients)
        except BaseException as error:  # noqa: BLE001 # as above
            self._layers.backward_raised(error, passing, gradients)
        return self._input_gradient(passing, found[: len(passing.wanted)])

    def backward_weight(self, micro_batch: int) -> None:
        """Run the second half of a backward pass: add to the parameters' gradients."""
        passing = self._in_flight.pop(micro_batch)
        if passing.split is None:
            return
        try:
            passing.split.weight_half(self._layers.need_of)
        except BaseException as error:  # noqa: BLE001 # as above
            self._layers.backward_raised(error, passing, ())

    def _record(self, passing: Pass) -> None:
        """Run the layers with a graph, if that is still to be done."""
        if not passing.is_recorded:
            self._run_with_graph(passing)

    def _run_without_graph(self, passing: Pass) -> Passed:
        """Run the layers without a graph, and keep what running them again needs."""
        passing.found = self._state.copied()
        if self._needs_gradients is None:
            self._needs_gradients = self._fails_without_gradients(passing)
        with torch.set_grad_enabled(self._needs_gradients):
            output = self._output(passing, copied(passing.received))
        if isinstance(output, torch.Tensor):
            return output.detach()
        structure, leaves = flatten(output)
        if structure not in self._is_wanted:
            self._is_wanted[structure] = self._needing_gradients(passing)
        return parcel(structure, leaves, self._is_wanted[structure])

    def _needing_gradients(self, passing: Pass) -> tuple[bool, ...]:
        """Return which tensors of the output need a gradient, from a run that leaves no trace."""
        with preserving_layer_state([self.module]), torch.enable_grad():
            output = self._output(replace(passing), as_in_training(passing.received))
        return tuple(leaf.requires_grad for leaf in flatten(output)[1])

    @torch.no_grad()
    def _fails_without_gradients(self, passing: Pass) -> bool:
        """Return whether the layers fail without gradients; their state is restored."""
        with preserving_layer_state([self.module]):
            try:
                self._output(passing, copied(passing.received))
            except (RuntimeError, UserError):  # for want of a gradient; any other comes again where it belongs
                return True
        return False

    def _run_with_graph(self, passing: Pass) -> Passed:
        """Run the layers with a graph; return their output."""
        if not self.is_first:
            passing.wanted = require_gradients(passing.received)
        passing.is_recorded = True
        if self._is_split:
            passing.saved = SavedTensors()
            passing.entrances = tuple(map(get_gradient_edge, passing.wanted))
        output = self._run_changeable(passing) if self._may_change else self._run_as_they_are(passing)
        if not isinstance(output, torch.Tensor):
            return self._leaving(passing, output)
        if self.is_last and not output.requires_grad:
            raise LayerError("BadModel", _NO_GRAPH)
        passing.roots = (get_gradient_edge(output) if output.requires_grad else None,)
        return output.detach() * passing.loss_weight if self.is_last else output.detach()

    def _leaving(self, passing: Pass, output: Any) -> Parcel:
        """Return a nesting without its graph. Raises LayerError if it needs another gradient than before."""
        structure, leaves = flatten(output)
        is_wanted = [leaf.requires_grad for leaf in leaves]
        announced = self._is_wanted.get(structure, is_wanted)  # by the run without a graph
        for place, (needs, is_known) in enumerate(zip(is_wanted, announced, strict=True)):
            if needs and not is_known:
                raise LayerError(
                    "BadModel",
                    f"{self.last_layer} returned {paths(structure)[place]} that requires a gradient, which it did not"
                    " for an earlier micro-batch; it must for all of them, or for none",
                )
        passing.roots = tuple(
            get_gradient_edge(leaf) if leaf.requires_grad else None
            for leaf, is_known in zip(leaves, announced, strict=True)
            if is_known
        )
        return parcel(structure, leaves, announced)

    def _run_changeable(self, passing: Pass) -> Any:
        """Run layers that may change in place what was received, leaves of the graph."""
        received = passing.received
        if isinstance(received, Parcel):
            return self._run_on_nesting(passing, received)
        entering = changeable(received)
        output = self._run_on(passing, entering)
        if entering is not received and entering._version:  # noqa: SLF001 # torch's documents name it
            increment_version(received)  # the stage before may be of this process, and have saved it
            self._passes_without_change = 0
        self._passes_without_change += 1
        self._may_change = self._passes_without_change < _PASSES_WITHOUT_CHANGE or self._is_never_leaf
        return output

    def _run_on_nesting(self, passing: Pass, received: Parcel) -> Any:
        entering = Entering(received)
        output = self._run_on(passing, entering.value)
        try:
            entering.note_changes()
        except ChangedInPlaceError as error:
            raise LayerError("ChangedInPlace", f"forward pass: layers from {self.first_layer} on: {error}") from error
        return output

    def _run_as_they_are(self, passing: Pass) -> Any:
        """Run layers that have changed nothing in place so far, with one node less in the graph."""
        try:
            return self._run_on(passing, passing.received)
        except (RuntimeError, UserError) as error:
            if not any(_OF_A_LEAF in str(each) for each in (error, error.__cause__)):
                raise
        return self._run_changeable(passing)  # it was refused, so nothing is changed yet

    def _run_on(self, passing: Pass, entering: Any) -> Any:
        """Run the layers, on the state of their first run if there is one.

        Hold saved tensors for two halves.
        """
        found, passing.found = passing.found, None
        if found is None and passing.saved is None:
            return self._layers.run(passing, entering)
        with (
            nullcontext() if passing.saved is None else passing.saved.keeping(),
            nullcontext() if found is None else self._state.on(found),
        ):
            return self._layers.run(passing, entering)

    def _output(self, passing: Pass, entering: Any) -> Any:
        output = self._layers.run(passing, entering)
        return output * passing.loss_weight if self.is_last else output

    def _input_gradient(self, passing: Pass, found: Sequence[torch.Tensor | None]) -> Gradients | None:
        """Return the gradient of what was received; `found` are those of its tensors that get one."""
        if self.is_first:
            return None
        received = passing.received
        if isinstance(received, torch.Tensor):
            return no_gradient(received) if not found or found[0] is None else found[0]
        return tuple(
            no_gradient(leaf) if each is None else each for leaf, each in zip(passing.wanted, found, strict=True)
        )


def _modules(layers: Sequence[LayerEntry]) -> nn.Module:
    root = nn.Module()
    root.layers = nn.ModuleDict({str(layer.index): layer.module for layer in layers})
    for layer in layers:
        to_training(layer.module)
    return root


_NO_GRAPH = (
    "the loss depends on no parameter and on nothing that came before: a layer gave what has no gradient, as detach(),"
    " torch.no_grad() or integers do; let it return the result with its graph"
)
