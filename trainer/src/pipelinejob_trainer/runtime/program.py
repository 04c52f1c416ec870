"""A rank's list of actions, bound once to stages and links: a step is then one call after another.

What to receive and send follows from an action and its stage's place on the route: F3 takes the
activation of micro-batch 3 from the stage before and sends one to the stage after; gradients go
the other way. Between two chunks of one rank, where a route turns round, they are handed over
without a link.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from pipelinejob.base.timeline import SpanKind
from pipelinejob.schedules.actions import GIVES_GRADIENT, Action, ActionKind, Schedule
from pipelinejob.schedules.causes import WaitCause, wait_causes
from pipelinejob_trainer.base.errors import LayerError
from pipelinejob_trainer.base.nesting import Gradients, Passed
from pipelinejob_trainer.communication.links import Inbox, Links, Outbox
from pipelinejob_trainer.communication.messages import Message, awaited, neighbours, order, produced, received_before
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.runtime.feed import Feed
from pipelinejob_trainer.runtime.recorder import State

Operation = Callable[[], None]
Switch = Callable[[State], None]  # records that another state begins
Take = Callable[[], Any]  # nothing, or what an action works on: inputs, an output or gradients
Give = Callable[[Any], None]


class Tasks(Protocol):
    """Returns the functions to call for each action, which take and return tensors, or nestings of them."""

    def forward(self, action: Action) -> Callable[[Passed | Inputs, torch.Tensor | None], Passed]:
        """Return a function from what was received and targets to the output, or the loss."""

    def maker(self, action: Action) -> str:
        """Return the name of the layer that makes what an action gives, for messages."""

    def loss(self, action: Action) -> Callable[[torch.Tensor], None]:
        """Return a function that takes a loss."""

    def ahead(self, action: Action) -> Operation | None:
        """Return work for `gradient` that can be done before the output's gradient arrives.

        Returns None if there is no such work.
        """

    def gradient(self, action: Action) -> Callable[[Gradients | None], Gradients | None]:
        """Return a function from output gradient to input gradient: backward, or its first half."""

    def weight(self, action: Action) -> Operation:
        """Return a function that runs a backward pass's second half."""

    def after(self, position: int) -> Sequence[Operation]:
        """Return what to do as soon as the action at this position has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a rank does in a step, from posting its first receives to sending its last message.

    `of` has each operation's micro-batch, or None.
    """

    operations: tuple[Operation, ...]
    of: tuple[int | None, ...]
    orders: tuple[tuple[Inbox, tuple[Message, ...]], ...]

    def play(self) -> None:
        """Play a step.

        Raises PeerLostError if a neighbour went away, UserError for unusable data or layers.
        """
        for inbox, messages in self.orders:
            inbox.expect(messages)
        for operation, micro_batch in zip(self.operations, self.of, strict=True):
            try:
                operation()
            except LayerError as error:
                error.within(f"micro-batch {micro_batch}")
                raise


def bind(schedule: Schedule, rank: int, *, tasks: Tasks, links: Links, feed: Feed, switch: Switch) -> Program:
    """Make a rank's program."""
    binder = _Binder(schedule, rank, tasks=tasks, links=links, feed=feed, switch=switch)
    operations, of = zip(*binder.operations(), strict=True)
    return Program(operations=operations, of=of, orders=binder.orders())


class _Binder:
    """Turns actions into operations."""

    def __init__(
        self, schedule: Schedule, rank: int, *, tasks: Tasks, links: Links, feed: Feed, switch: Switch
    ) -> None:
        self._schedule = schedule
        self._rank = rank
        self._actions = schedule.ranks[rank]
        self._tasks = tasks
        self._links = links
        self._feed = feed
        self._switch = switch
        self._handed_over: dict[Message, Any] = {}
        self._positions = {
            peer: {message: place for place, message in enumerate(order(schedule, peer, rank))}
            for peer in neighbours(schedule, rank)
        }
        self._arrived = {peer: received_before(schedule, peer, rank) for peer in self._positions}

    def orders(self) -> tuple[tuple[Inbox, tuple[Message, ...]], ...]:
        return tuple((self._links.inboxes[peer], tuple(messages)) for peer, messages in self._positions.items())

    def operations(self) -> Iterator[tuple[Operation, int | None]]:
        """Return all operations with their micro-batches.

        All text is read together, before the rank first waits: between long actions, with cold
        caches, each micro-batch would take ten times as long to read.
        """
        loads = self._loads()
        causes = wait_causes(self._actions)
        for position, (action, cause) in enumerate(zip(self._actions, causes, strict=True)):
            is_awaited = awaited(self._schedule, self._rank, action) is not None
            # A first rank sends its first micro-batch on before it reads the others.
            due = loads if is_awaited or position > 0 else loads[:1]
            yield from ((load, None) for load in due)
            del loads[: len(due)]
            yield from ((operation, action.micro_batch) for operation in self._operation(action, cause))
            yield from ((operation, None) for operation in self._tasks.after(position))
        yield self._flush(), None

    def _loads(self) -> list[Operation]:
        """Return operations that read each micro-batch's text, in the order of need."""
        forwards = [action.micro_batch for action in self._actions if action.kind is ActionKind.FORWARD]
        return [self._load(k) for k in dict.fromkeys(forwards) if self._feed.needs(k)]

    def _operation(self, action: Action, cause: WaitCause) -> tuple[Operation, ...]:
        if action.kind is ActionKind.FORWARD:
            return (self._forward(action, cause),)
        if action.kind in GIVES_GRADIENT:
            return (self._gradient(action, cause),)
        if action.kind is ActionKind.WEIGHT:
            return (self._weight(action),)
        return ()  # an update is what the tasks do after it

    def _forward(self, action: Action, cause: WaitCause) -> Operation:
        k = action.micro_batch
        stage = self._schedule.stage_of(self._rank, action)
        take: Take = partial(self._feed.inputs, k) if stage == 0 else self._take(action, cause)
        is_last = stage == self._schedule.num_stages - 1
        targets = partial(self._feed.targets, k) if is_last else _nothing
        give: Give = self._tasks.loss(action) if is_last else self._give(action)
        run, switch, state = self._tasks.forward(action), self._switch, self._state(SpanKind.FORWARD, action)

        def forward() -> None:
            received = take()
            assert received is not None, "a stage is first or has one before it"
            switch(state)
            give(run(received, targets()))

        return forward

    def _gradient(self, action: Action, cause: WaitCause) -> Operation:
        take, give = self._take(action, cause), self._give(action)
        ahead, run = self._tasks.ahead(action), self._tasks.gradient(action)
        switch, state = self._switch, self._state(SpanKind.BACKWARD_INPUT, action)

        def gradient() -> None:
            received = take()
            switch(state)
            give(run(received))

        if ahead is None:
            return gradient

        def prepared() -> None:
            switch(state)
            ahead()
            gradient()

        return prepared

    def _weight(self, action: Action) -> Operation:
        run, switch, state = self._tasks.weight(action), self._switch, self._state(SpanKind.BACKWARD_WEIGHT, action)

        def weight() -> None:
            switch(state)
            run()

        return weight

    def _take(self, action: Action, cause: WaitCause) -> Take:
        """Return a function that receives what an action needs from another stage."""
        exchange = awaited(self._schedule, self._rank, action)
        if exchange is None:
            return _nothing
        message, (peer, _) = exchange
        if peer == self._rank:
            return partial(self._handed_over.pop, message)
        position = self._positions[peer][message]
        arrived = self._arrived[peer][position]
        receive, release = self._links.inboxes[peer].receive, self._links.outboxes[peer].release
        switch, state = self._switch, self._state(SpanKind.RECV, action, cause)

        def take() -> Passed | Gradients:
            switch(state)
            received = receive(position)
            release(arrived)
            return received

        return take

    def _give(self, action: Action) -> Give:
        """Return a function that sends an action's result to another stage."""
        exchange = produced(self._schedule, self._rank, action)
        if exchange is None:
            return _ignore
        message, (peer, _) = exchange
        if peer == self._rank:
            return partial(self._handed_over.__setitem__, message)
        send = self._links.outboxes[peer].send
        switch, state, maker = self._switch, self._state(SpanKind.SEND, action), self._tasks.maker(action)

        def give(value: Passed | Gradients | None) -> None:
            assert value is not None, "only the first stage has no gradient to send"
            switch(state)
            try:
                send(message, value)
            except LayerError as error:
                error.within(maker)
                raise

        return give

    def _load(self, micro_batch: int) -> Operation:
        load, switch, state = self._feed.load, self._switch, State(SpanKind.DATA, micro_batch)

        def read() -> None:
            switch(state)
            load(micro_batch)

        return read

    def _flush(self) -> Operation:
        outboxes: tuple[Outbox, ...] = tuple(self._links.outboxes[peer] for peer in self._positions)
        switch, state = self._switch, State(SpanKind.SEND, cause=WaitCause.SEND)

        def flush() -> None:
            switch(state)
            for outbox in outboxes:
                outbox.flush()

        return flush

    def _state(self, kind: SpanKind, action: Action, cause: WaitCause | None = None) -> State:
        return State(kind, action.micro_batch, cause, action.chunk)


def _nothing() -> None:
    return None


def _ignore(_: object) -> None:
    """Drop a result that no stage needs."""
