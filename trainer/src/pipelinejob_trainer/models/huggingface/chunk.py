"""Runs stretches of a model of transformers by the model's own forward.

Blocks before a stretch pass on what they are given, the last of them instead what the stage
received; then come the stretch's own blocks; behind the last of them the forward pass is left by
an exception. So masks, positions, rotary tables and windows are the model's own work on every
stage.

Every token has its position passed, but to the few families that count from elsewhere. Where a row
has several documents, positions travel along beside the hidden state, from the first stage to the
last: so no stage but these two reads data, and each has the positions of the micro-batch that it
works on. So do the sums of a balancing loss, in training (`balance.py`). No cache is used. Padding
on the right needs no mask: a causal model's token does not see what comes after it, and the
padding's own targets do not count.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn

from pipelinejob_trainer.base.errors import LayerError, UserError
from pipelinejob_trainer.base.user_code import forward_raised
from pipelinejob_trainer.models.huggingface.balance import FLAG, Routed, balance_of, let_routers_tell, told_by_routers
from pipelinejob_trainer.models.huggingface.cut import Cut, owner_of
from pipelinejob_trainer.models.losses.auxiliary_loss import add_to_loss
from pipelinejob_trainer.models.walk import Through

# The hidden state, with positions where they are not plain, and what routers did where that adds
# to the loss.
Passed = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor | None, Routed]


class _Parts(NamedTuple):
    """What is passed, taken apart."""

    hidden: torch.Tensor
    positions: torch.Tensor | None = None
    routed: Routed | None = None


class _Left(BaseException):  # no error; and transformers may catch those
    """Leaves a model's forward with the output of a stretch's last layer."""

    def __init__(self, output: Passed) -> None:
        super().__init__()
        self.output = output


@dataclass(slots=True)
class _Stretch:
    """A run in progress: layers [first, end), what was received, and which block comes next."""

    first: int
    end: int
    received: torch.Tensor
    positions: torch.Tensor | None
    routed: Routed | None
    through: Through
    grad: bool
    caches_casts: bool
    next: int


class Runner:
    """Runs stretches of one rank's model; its own layers, called by themselves, run as stretches of one.

    `takes_documents` is whether the model keeps the documents of a row apart by their positions.
    """

    def __init__(self, cut: Cut, *, takes_documents: bool) -> None:
        self.cut = cut
        self._takes_documents = takes_documents
        self._stretch: _Stretch | None = None
        self._balance = balance_of(cut.config, cut.model)
        if self._balance:
            let_routers_tell(owner_of(cut.model, cut.names.blocks))
        self._accepts = set(inspect.signature(cut.model.forward).parameters)
        self._forwards: dict[int, Callable[..., Any]] = {}  # the blocks' own
        for index, block in enumerate(cut.blocks, start=1):
            self._forwards[index] = block.forward
            block.forward = partial(self._called, index, block, block.forward)
        cut.layers[0].forward = self._embedded
        cut.layers[-1].forward = self._alone_at_the_end
        own = {module for index in cut.own for module in cut.layers[index].modules()}
        blocks = set(cut.blocks.modules())
        self._shells = [each for each in cut.model.modules() if each not in own and each not in blocks]
        self._device: torch.device | None = None

    def compile(self, index: int) -> None:
        """Compile a block's own forward; embedding and head stay as they are, in the model's forward around them.

        Raises UserError where routers are listened to, which a compiled block does not tell.
        """
        if index not in self._forwards:
            return
        if self._balance is not None:
            raise UserError(
                "NotCompiled",
                f"spec.training.compile: Layers does not go with output_router_logits: true of a"
                f" {self.cut.config.model_type}, whose routers are listened to while a block runs; set compile to Off",
            )
        block = self.cut.blocks[index - 1]
        block.forward = partial(self._called, index, block, torch.compile(self._forwards[index], dynamic=False))

    @contextmanager
    def hollow(self, index: int) -> Iterator[None]:
        """Let a block pass on what it is given: what is left is the model's own forward around it."""
        block = self.cut.blocks[index - 1]
        own = block.forward

        def nothing(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return self._answer(block, hidden_states * 1)

        block.forward = partial(self._called, index, block, nothing)
        try:
            yield
        finally:
            block.forward = own

    def reads_tokens(self) -> bool:
        """Return whether what runs begins with the tokens; else the model embeds them in vain."""
        return self._stretch is not None and self._stretch.first == 0

    def walk(self, layers: range, received: Passed, through: Through) -> Passed:
        """Run the layers of a chunk; return the last one's output, logits if it is the head.

        `received` are token ids (batch, sequence) where the chunk begins with the embedding, else
        the hidden state (batch, sequence, hidden), and positions (batch, sequence) beside it where
        rows have several documents. Embedding and head run by themselves, the blocks between them
        in one forward pass.
        """
        output, head = received, self.cut.names.head_index
        if layers.start == 0:
            output = through(0, self.cut.layers[0], output)
        first, end = max(layers.start, 1), min(layers.stop, head)
        if first < end:
            output = self._run(first, end, _parts(output), through)
        if layers.stop == head + 1:
            output = through(head, self.cut.layers[head], output)
        return output

    def _embedded(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> Passed:
        if positions is not None and not self._takes_documents:
            if torch.equal(positions, torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)):
                return self._run(0, 1, _Parts(tokens))
            raise UserError(
                "DocumentsMixed",
                f"spec.data: rows hold several documents, which a {self.cut.config.model_type} does not keep apart by"
                " their positions: tokens would see the documents before their own; give one document a row",
            )
        return self._run(0, 1, _Parts(tokens, positions))

    def _alone(self, index: int, received: Passed) -> Passed:
        return self._run(index, index + 1, _parts(received))

    def _alone_at_the_end(self, received: Passed) -> Passed:
        parts = _parts(received)
        if parts.routed is not None and self._balance is not None:
            add_to_loss(self._balance.loss(parts.routed))
        return self._run(self.cut.names.head_index, self.cut.names.head_index + 1, parts)

    def _run(self, first: int, end: int, given: _Parts, through: Through | None = None) -> Passed:
        """Run layers [first, end)."""
        received, positions, routed = given
        assert self._stretch is None, "a model's forward is run by one stretch at a time"
        self._set_mode(training=self.cut.layers[first].training)
        self._move(received.device)
        self._stretch = _Stretch(
            first=first,
            end=end,
            received=received,
            positions=positions,
            routed=routed,
            through=through or _directly,
            grad=torch.is_grad_enabled(),
            caches_casts=torch.is_autocast_cache_enabled(),
            next=first or 1,
        )
        try:
            with torch.set_grad_enabled(self._stretch.grad and first == 0):
                # What comes before is thrown away, and casts made without gradients must not be
                # found later.
                torch.set_autocast_cache_enabled(self._stretch.caches_casts and first == 0)
                output = self.cut.model(**self._inputs(first, received, positions))
        except _Left as left:
            return left.output
        except LayerError:
            raise
        except Exception as error:  # noqa: BLE001 # the model's own code, between its layers
            forward_raised(error, first, self.cut.layers[first], received)
        finally:
            torch.set_autocast_cache_enabled(self._stretch.caches_casts)
            self._stretch = None
        self._check_end(first, end)
        logits: torch.Tensor = output[0] if isinstance(output, tuple) else output.logits
        return logits

    def _called(self, index: int, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand where a block's forward stood: run it, pass by, or leave."""
        stretch = self._stretch
        if stretch is None:
            return self._alone(index, *args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if stretch.first == 0:
            routed = self._balance.nothing(hidden.device) if self._balance and self.cut.layers[0].training else None
            raise _Left(_joined(_Parts(hidden, stretch.positions, routed)))
        if index < stretch.first:
            return self._answer(block, self._arrived(stretch) if index == stretch.first - 1 else hidden)
        if index != stretch.next:
            self._lost(index, stretch)
        stretch.next += 1
        rest: tuple[Any, ...] | None = None

        def call(given: Passed) -> Passed:
            nonlocal rest
            parts = _parts(given)
            output, routed = self._forward(forward, parts, args, kwargs)
            if isinstance(output, (tuple, list)):
                output, *others = output
                rest = tuple(others)
            return _joined(_Parts(output, parts.positions, routed))

        entering = self._arrived(stretch) if index == 1 else hidden
        output = stretch.through(index, block, _joined(_Parts(entering, stretch.positions, stretch.routed)), call)
        if index == stretch.end - 1:
            raise _Left(output)
        leaving, _, stretch.routed = _parts(output)
        return leaving if rest is None else (leaving, *rest)

    def _forward(
        self, forward: Callable[..., Any], given: _Parts, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Routed | None]:
        """Run a block's own forward; return its output, and what routers have done up to here."""
        hidden = given.hidden

        def run() -> Any:
            return forward(hidden, *args[1:], **kwargs) if args else forward(**kwargs | {"hidden_states": hidden})

        if given.routed is None or self._balance is None:
            return run(), given.routed
        with told_by_routers() as router_logits:
            output = run()
        return output, self._balance.after(given.routed, router_logits)

    def _arrived(self, stretch: _Stretch) -> torch.Tensor:
        """Return what was received; from here on it counts, so gradients are switched on again."""
        torch.set_grad_enabled(stretch.grad)
        torch.set_autocast_cache_enabled(stretch.caches_casts)
        return stretch.received

    def _answer(self, block: nn.Module, hidden: torch.Tensor) -> Any:
        length = self.cut.anatomy.answers[type(block).__qualname__]
        return hidden if length is None else (hidden, *(None,) * (length - 1))

    def _inputs(self, first: int, received: torch.Tensor, positions: torch.Tensor | None) -> dict[str, Any]:
        if first == 0:
            tokens = received
        else:
            tokens = torch.zeros((), dtype=torch.int64, device=received.device).expand(received.shape[:2])
        if positions is None and self.cut.anatomy.counts_positions:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        inputs = {"input_ids": tokens, "position_ids": positions, "use_cache": False, FLAG: False}
        return {name: value for name, value in inputs.items() if name in self._accepts and value is not None}

    def _set_mode(self, *, training: bool) -> None:
        """Let what is of no layer be in training mode as the layers are."""
        if self.cut.model.training != training:
            for each in self._shells:
                each.training = training

    def _move(self, device: torch.device) -> None:
        """Move what is of no layer to where the layers are."""
        if device == self._device:
            return
        for module in (*self._shells, *self.cut.layers[0].modules()):
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001 # shared slots
            for slots in tables:
                for slot, tensor in slots.items():
                    if tensor is not None and not tensor.is_meta and tensor.device != device:
                        slots[slot] = _moved(tensor, device)
        self._device = device

    def _check_end(self, first: int, end: int) -> None:
        if end != self.cut.names.head_index + 1:
            raise LayerError(
                "BadModel",
                f"layers {first} to {end - 1} of a {self.cut.config.model_type}: the model's forward ended without"
                " calling all of them, so that its blocks do not run one after another",
            )

    def _lost(self, index: int, stretch: _Stretch) -> NoReturn:
        raise LayerError(
            "BadModel",
            f"the forward of a {self.cut.config.model_type} called layer {index} where layer {stretch.next} was to"
            " come, so that its blocks do not run one after another",
        )


def _parts(passed: Passed) -> _Parts:
    return _Parts(passed) if isinstance(passed, torch.Tensor) else _Parts(*passed)


def _joined(parts: _Parts) -> Passed:
    if parts.routed is not None:
        return parts.hidden, parts.positions, parts.routed
    return parts.hidden if parts.positions is None else (parts.hidden, parts.positions)


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on another device; one that takes no memory takes none there."""
    if isinstance(tensor, nn.Parameter):
        nothing = torch.zeros((), dtype=tensor.dtype, device=device).expand(tensor.shape)
        return nn.Parameter(nothing, requires_grad=False)
    return tensor.to(device)


def _directly(index: int, layer: nn.Module, given: Passed, call: Any = None) -> Any:  # noqa: ARG001 # as all others
    return (call or layer)(given)
