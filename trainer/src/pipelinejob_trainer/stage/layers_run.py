"""The layers of a stage run one after the other on a micro-batch, each under its own random state and name."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import nn

from pipelinejob.spec.job import Precision
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.nesting import tensors
from pipelinejob_trainer.base.user_code import backward_raised, checked_output, forward_raised, named
from pipelinejob_trainer.models.first_layer import takes_positions
from pipelinejob_trainer.models.losses.auxiliary_loss import Gathering, with_terms
from pipelinejob_trainer.models.losses.counted_loss import loss_of
from pipelinejob_trainer.models.losses.loss import Loss, OwnLoss, token_cross_entropy
from pipelinejob_trainer.models.part import LayerEntry, walk_of
from pipelinejob_trainer.stage.backward.autograd_functions import is_against_hooks, not_in_halves
from pipelinejob_trainer.stage.backward.failing_layer import failing_layer
from pipelinejob_trainer.stage.border import entrances_at
from pipelinejob_trainer.stage.compiling import compiled, not_compiled
from pipelinejob_trainer.stage.passing import Pass, as_it_is, copy_of
from pipelinejob_trainer.stage.randomness import reseeder
from pipelinejob_trainer.stage.weights import Weights

Call = Callable[..., Any]  # a layer, or what runs it in its stead


class LayersRun:
    """Runs them; what they raise is said to be theirs.

    `loss` is the last stage's, None on any other. `weights` are asked for what each layer needs,
    where it is not always there. `watches_gradients` refuses layers whose forward passes add to
    gradients, as a pass that is run again adds twice.
    """

    def __init__(
        self,
        layers: Sequence[LayerEntry],
        loss: Loss | None,
        *,
        is_first: bool,
        is_split: bool,
        precision: Precision,
        compiles: bool = False,
        device: torch.device,
        weights: Weights | None = None,
        watches_gradients: bool = False,
    ) -> None:
        first, last = layers[0], layers[-1]
        self._layers = tuple((layer.index, layer.module) for layer in layers)
        self._walk = walk_of(layers)
        self._loss = loss
        self._is_split = is_split
        self._judged = last.index if isinstance(loss, OwnLoss) else None  # loss and last layer may agree on more
        self._positioned = first.index if is_first and takes_positions(first.module) else None
        is_known = all(_is_known(module) for layer in layers for module in layer.module.modules())
        self._reseed = reseeder(device, of_torch_alone=is_known and not isinstance(loss, OwnLoss))
        watched = layers if watches_gradients and not is_known else ()
        self._watched = {layer.index: tuple(layer.module.parameters()) for layer in watched}
        self._autocast = _autocast(precision, device)
        self._compiles = compiles
        self._compiled = compiled(layers) if compiles else {}
        self._weights = weights
        indices = [layer.index for layer in layers]
        # A folder's model embeds something in front of a stretch of blocks, and of its head,
        # whatever these work on.
        self._beside = () if first.runner is None else (0,)
        self._head = last.index if loss is not None else None
        self._then = dict(pairwise(indices))
        ends = indices[1] if is_first and is_split and len(indices) > 1 else None  # of the first half, on its way back
        self._before = {index: before for before, index in pairwise(indices) if index != ends}
        trained = () if weights is None else layers
        self._layer_of: dict[torch.Tensor, int] = {
            each: layer.index for layer in trained for _, each in layer.named_parameters()
        }

    def run(self, passing: Pass, entering: Any) -> Any:
        """Return the last layer's output, or on the last stage the loss, not weighted."""

        def through(index: int, layer: nn.Module, given: Any, call: Call | None = None) -> Any:
            if self._is_split and not passing.entrances:  # on the first stage, at the first layer's output
                given, passing.entrances = entrances_at(given)
            if self._weights is None:
                return self._through_layer(index, layer, given, passing, call)
            beside = self._beside if index == self._head else ()
            self._weights.need((index, *beside), self._then.get(index))
            return self._needing_back(index, self._through_layer(index, layer, given, passing, call))

        if self._weights is not None and self._beside:
            self._weights.need(self._beside, self._layers[0][0])
        with self._autocast():
            if self._loss is None:
                return self._walk(entering, through)
            with Gathering() as terms:
                output = self._walk(entering, through)
            return self._loss_of(passing, output, terms)

    def _through_layer(self, index: int, layer: nn.Module, given: Any, passing: Pass, call: Call | None = None) -> Any:
        if passing.seed is not None:
            self._reseed(passing.seed, index)
        run = call or self._compiled.get(index, layer)
        watched = self._watched.get(index)
        before = _gradients(watched) if watched else None
        try:
            output = run(given, positions=copy_of(passing.positions)) if index == self._positioned else run(given)
        except BaseException as error:  # a user's code may raise anything
            if self._compiles and (refusal := not_compiled(index, layer, error)) is not None:
                raise refusal from error
            if self._is_split and is_against_hooks(error):
                raise not_in_halves(index, layer) from error
            forward_raised(error, index, layer, given)
        if watched and _gradients(watched) != before:
            raise UserError("GradientInForward", f"{named(index, layer)} {_ADDS_IN_FORWARD}")
        if isinstance(output, torch.Tensor) or index == self._judged:
            return output
        return checked_output(index, layer, output)

    def need_of(self, parameters: Collection[torch.Tensor]) -> None:
        """Let the layers of these parameters have their values, for the second half of a backward pass."""
        layers = tuple(dict.fromkeys(self._layer_of[each] for each in parameters if each in self._layer_of))
        if self._weights is not None and layers:
            self._weights.need(layers, self._then.get(layers[-1]))

    def _needing_back(self, index: int, output: Any) -> Any:
        """Let a layer's way back, which begins where its output was made, have the layer's values."""
        weights, before = self._weights, self._before.get(index)
        assert weights is not None, "who calls has seen"

        def need(_: object) -> None:
            weights.need((index,), before)

        for leaf in tensors(output):
            if leaf.grad_fn is not None:
                leaf.grad_fn.register_prehook(need)
        return output

    def _loss_of(self, passing: Pass, output: Any, terms: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        assert self._loss is not None, "the last stage has a loss"
        assert passing.targets is not None, "the last stage has targets"
        if passing.seed is not None and self._loss is not token_cross_entropy:
            self._reseed(passing.seed, self._layers[-1][0] + 1)  # as a layer after the last
        given = self._loss(output, passing.targets)
        loss = loss_of(given, passing.targets, is_alone=passing.is_alone)
        passing.counted = loss.counted
        return with_terms(loss, terms, passing.targets.numel()) if terms else loss.value

    def backward_raised(self, error: BaseException, passing: Pass, gradients: Sequence[torch.Tensor]) -> NoReturn:
        """Raise LayerError; name the layer whose backward pass raised, if it can be found."""

        def find() -> int | None:
            if self._weights is not None:  # the others would not run their layers again, and give nothing
                return None
            loss = None if passing.targets is None else partial(self._loss_of, passing)
            run = partial(self._through_layer, passing=passing)
            arriving = () if self._loss is not None else gradients  # there it is the loss's
            with self._autocast():
                return failing_layer(self._layers, run, as_it_is(passing.received), arriving, loss)

        backward_raised(error, self._layers, find, loss=getattr(self._loss, "name", None))


def _autocast(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    if precision is Precision.FP32:
        return nullcontext
    # A copy made where no gradient is wanted has none, and would be found by the pass that wants
    # one.
    return lambda: torch.autocast(device.type, torch.bfloat16, cache_enabled=torch.is_grad_enabled())


def _is_known(module: nn.Module) -> bool:
    """Return whether a module's forward pass is torch's or the trainer's: not exchanged on it, nor with hooks."""
    is_ours = type(module).__module__.startswith(("torch.nn.modules.", "pipelinejob_trainer."))
    has_hooks = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001 # there is no public way
    return is_ours and "forward" not in vars(module) and not has_hooks


def _gradients(parameters: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Return which tensors the gradients are, and how often each was changed."""
    gradients = (each.grad for each in parameters)
    return [(0, 0) if each is None else (id(each), each._version) for each in gradients]  # noqa: SLF001 # torch's documents name it


_ADDS_IN_FORWARD = (
    "changes the gradients of its parameters in its forward pass (it calls backward(), zero_grad() or an optimiser),"
    " which where a stage recomputes happens twice, and in an asynchronous schedule goes to another micro-batch's"
    " update; let the layer's loss reach the model's (return it on, or make it an autograd Function), or train"
    " synchronously with schedule.recompute: false"
)
