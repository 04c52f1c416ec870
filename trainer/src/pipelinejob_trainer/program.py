"""A rank's list of actions, bound once to what it is played with: a step then is one call after another.

What to receive and send follows from an action and its stage's place on the route: F3 takes the activation of
micro-batch 3 from the stage before and gives one to the stage after, a gradient goes the other way. Between two chunks
of one rank, where a route turns round, a tensor is handed over without a link.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from pipelinejob.schedules.actions import GIVES_GRADIENT, Action, ActionKind, Schedule
from pipelinejob.schedules.causes import WaitCause, wait_causes
from pipelinejob.timeline import SpanKind
from pipelinejob_trainer.feed import Feed
from pipelinejob_trainer.link import Inbox, Links, Outbox
from pipelinejob_trainer.messages import Message, awaited, made, neighbours, order, taken_before
from pipelinejob_trainer.recorder import State

Operation = Callable[[], None]
Switch = Callable[[State], None]  # records that another state begins
Take = Callable[[], torch.Tensor | None]
Give = Callable[[torch.Tensor | None], None]


class Tasks(Protocol):
    """Gives what is to be called for each action, tensors in hand."""

    def forward(self, action: Action) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        """Give what makes the output, or the loss, of what was received and the targets."""

    def loss(self, action: Action) -> Callable[[torch.Tensor], None]:
        """Give what takes a loss in."""

    def ahead(self, action: Action) -> Operation | None:
        """Give what can be done for `gradient` before the output's is there; None if there is nothing."""

    def gradient(self, action: Action) -> Callable[[torch.Tensor | None], torch.Tensor | None]:
        """Give what makes the input's gradient, of the output's: a full backward pass, or its first half."""

    def weight(self, action: Action) -> Operation:
        """Give what runs a backward pass's second half."""

    def after(self, position: int) -> Sequence[Operation]:
        """Give what is to be done as soon as the action in this place has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a rank does in a step, from posting its first receives to sending its last message."""

    operations: tuple[Operation, ...]
    orders: tuple[tuple[Inbox, tuple[Message, ...]], ...]

    def play(self) -> None:
        """Do it. Raises PeerLostError when a neighbour went away, UserError for data or layers that cannot be used."""
        for inbox, messages in self.orders:
            inbox.expect(messages)
        for operation in self.operations:
            operation()


def bind(schedule: Schedule, rank: int, *, tasks: Tasks, links: Links, feed: Feed, switch: Switch) -> Program:
    """Make the program of a rank."""
    binder = _Binder(schedule, rank, tasks=tasks, links=links, feed=feed, switch=switch)
    return Program(operations=tuple(binder.operations()), orders=binder.orders())


class _Binder:
    """Makes operations of actions."""

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
        self._handed_over: dict[Message, torch.Tensor | None] = {}
        self._positions = {
            peer: {message: place for place, message in enumerate(order(schedule, peer, rank))}
            for peer in neighbours(schedule, rank)
        }
        self._arrived = {peer: taken_before(schedule, peer, rank) for peer in self._positions}

    def orders(self) -> tuple[tuple[Inbox, tuple[Message, ...]], ...]:
        return tuple((self._links.inboxes[peer], tuple(messages)) for peer, messages in self._positions.items())

    def operations(self) -> Iterator[Operation]:
        """Give all operations; text is read before the rank first waits, all in one go.

        Read one by one between long actions, each micro-batch takes ten times as long: nothing is in the caches then.
        """
        loads = self._loads()
        causes = wait_causes(self._actions)
        for position, (action, cause) in enumerate(zip(self._actions, causes, strict=True)):
            is_awaited = awaited(self._schedule, self._rank, action) is not None
            # A first rank sends its first micro-batch on before it reads the others.
            due = loads if is_awaited or position > 0 else loads[:1]
            yield from due
            del loads[: len(due)]
            yield from self._operation(action, cause)
            yield from self._tasks.after(position)
        yield self._flush()

    def _loads(self) -> list[Operation]:
        """Give what reads the text of each micro-batch, in the order in which it is needed."""
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
        give = self._tasks.loss(action) if is_last else self._give(action)
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
        """Give what takes in what an action needs from another stage."""
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

        def take() -> torch.Tensor:
            switch(state)
            tensor = receive(position)
            release(arrived)
            return tensor

        return take

    def _give(self, action: Action) -> Give:
        """Give what hands on what an action made for another stage."""
        exchange = made(self._schedule, self._rank, action)
        if exchange is None:
            return _ignore
        message, (peer, _) = exchange
        if peer == self._rank:
            return partial(self._handed_over.__setitem__, message)
        send = self._links.outboxes[peer].send
        switch, state = self._switch, self._state(SpanKind.SEND, action)

        def give(tensor: torch.Tensor | None) -> None:
            assert tensor is not None, "only the first stage gives no gradient, and it has nobody to give it to"
            switch(state)
            send(message, tensor)

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


def _ignore(_: torch.Tensor | None) -> None:
    """Let it go."""
