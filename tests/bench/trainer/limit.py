"""The limit of the machine: a list's waits and messages, and nothing else.

No autograd, no layers, no spans, no batches: a rank sleeps as long as each action takes, and
buffers of the right size go over the same gloo groups as a runtime's do, every receive of the step
posted at its start. What such a step takes longer than the ideal is the price of waking up and of
gloo on this machine; no runtime can be expected below it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import torch
from torch import distributed

from harness import Player
from pipelinejob.schedules.actions import Action, ActionKind, Schedule
from pipelinejob.schedules.costs import CostModel
from pipelinejob_trainer.communication.messages import Message, awaited, neighbours, order, produced
from pipelinejob_trainer.communication.process_groups import Groups
from pipelinejob_trainer.models.virtual import Sleeper

_Operation = Callable[[], object]


def waits_and_messages(
    schedule: Schedule, costs: CostModel, rank: int, groups: Groups, *, message_shape: tuple[int, ...]
) -> Player:
    """Return the player of one rank."""
    bare = _Bare(schedule, costs, rank, groups, message_shape)
    return Player(step=lambda _: bare.play())


class _Bare:
    def __init__(
        self, schedule: Schedule, costs: CostModel, rank: int, groups: Groups, message_shape: tuple[int, ...]
    ) -> None:
        self._schedule, self._rank, self._groups = schedule, rank, groups
        self._costs = costs(schedule.routes)
        self._sleeper = Sleeper()
        self._expected = [
            (message, peer) for peer in neighbours(schedule, rank) for message in order(schedule, peer, rank)
        ]
        self._buffers = {message: torch.empty(message_shape) for message, _ in self._expected}
        self._outgoing = torch.zeros(message_shape)
        self._posted: dict[Message, distributed.Work] = {}
        self._sent: list[distributed.Work] = []
        self._operations = [operation for action in schedule.ranks[rank] for operation in self._of(action)]

    def play(self) -> None:
        """Play one step."""
        for message, peer in self._expected:
            self._posted[message] = self._group(peer, self._rank).recv([self._buffers[message]], peer, message.tag)
        for operation in self._operations:
            operation()
        for work in self._sent:
            work.wait()
        self._sent.clear()

    def _of(self, action: Action) -> Iterator[_Operation]:
        got = awaited(self._schedule, self._rank, action)
        if got is not None and got.place.rank != self._rank:
            yield partial(self._receive, got.message)
        yield partial(self._work, self._seconds(action))
        gave = produced(self._schedule, self._rank, action)
        if gave is not None and gave.place.rank != self._rank:
            yield partial(self._send, gave.message, gave.place.rank)

    def _receive(self, message: Message) -> None:
        self._posted.pop(message).wait()

    def _work(self, seconds: float) -> None:
        self._sleeper.sleep_until(perf_counter() + seconds)

    def _send(self, message: Message, peer: int) -> None:
        self._sent.append(self._group(self._rank, peer).send([self._outgoing], peer, message.tag))

    def _group(self, source: int, target: int) -> distributed.ProcessGroup:
        return self._groups.pipeline if source < target else self._groups.pipeline_back

    def _seconds(self, action: Action) -> float:
        if action.kind is ActionKind.UPDATE:
            return 0.0
        stage, costs = self._schedule.stage_of(self._rank, action), self._costs
        match action.kind:
            case ActionKind.FORWARD:
                return costs.forward_s[stage]
            case ActionKind.INPUT:
                return costs.input_s[stage]
            case ActionKind.WEIGHT:
                return costs.weight_s[stage]
            case _:
                return costs.input_s[stage] + costs.weight_s[stage]
