"""The clock that actions are played on: when each of them starts and ends, on devices of their own or shared ones.

`simulate.py` says what the model is.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from pipelinejob.schedules.actions import GIVES_GRADIENT, ActionKind, Schedule, ScheduleError, Work
from pipelinejob.schedules.costs import Costs
from pipelinejob.simulation import Times


class Program:
    """A schedule's wiring with what its actions and messages take."""

    def __init__(
        self, schedule: Schedule, costs: Costs, slowdowns: Sequence[float] | None, update_s: Sequence[float]
    ) -> None:
        wiring = schedule.wiring
        self.num_ranks, self.num_links = schedule.num_ranks, len(wiring.links)
        self.offsets, self.rank_of = wiring.offsets, wiring.rank_of
        self.source, self.target = wiring.source, wiring.target
        slowed = slowdowns or [1.0] * self.num_ranks
        work_s = [_work_s(work, costs, slowed[work.rank], update_s) for work in wiring.works]
        ahead_s = [_ahead_s(work, costs, slowed[work.rank]) for work in wiring.works]
        self.seconds = [work_s[number] for number in wiring.work_of]
        self.ahead = [ahead_s[number] for number in wiring.work_of]  # of those seconds, what waits for no message
        joined = [costs.between(*ends) for ends in wiring.links]
        links = [(number, link.message_s, link.latency_s) for number, link in enumerate(joined)]
        links.append((-1, 0.0, 0.0))  # what stays within its rank
        self.link = [links[number] for number in wiring.link_of]  # its number, message_s, latency_s
        # From when its message has left to when the action that waits for it can start: to have done a part of that by
        # then is to have had the message by so much sooner.
        self.lead = [
            latency_s - (self.ahead[receiver] if receiver >= 0 else 0.0)
            for (_, _, latency_s), receiver in zip(self.link, self.target, strict=True)
        ]

    def of_rank(self, values: list[float], rank: int) -> list[float]:
        return values[self.offsets[rank] : self.offsets[rank + 1]]

    def by_rank(self, values: list[float]) -> Times:
        return tuple(tuple(self.of_rank(values, rank)) for rank in range(self.num_ranks))


def _work_s(work: Work, costs: Costs, slowdown: float, update_s: Sequence[float]) -> float:
    """Give the seconds of an action."""
    rank, kind, stage = work
    match kind:
        case ActionKind.UPDATE:
            return update_s[rank] * slowdown if update_s else 0.0
        case ActionKind.FORWARD:
            seconds = costs.forward_s[stage]
        case ActionKind.BACKWARD:
            seconds = costs.input_s[stage] + costs.weight_s[stage]
        case ActionKind.INPUT:
            seconds = costs.input_s[stage]
        case ActionKind.WEIGHT:
            seconds = costs.weight_s[stage]
    return seconds * slowdown / (costs.speeds[rank] if costs.speeds else 1.0) + costs.action_s


def _ahead_s(work: Work, costs: Costs, slowdown: float) -> float:
    """Give what of an action's seconds can pass before its gradient is there."""
    return costs.ahead_of_gradient_s(work.stage, work.rank) * slowdown if work.kind in GIVES_GRADIENT else 0.0


@dataclass(slots=True)
class Play:
    """When each action started and ended, how much of it passed ahead of a wait, and when its rank was free again."""

    started: list[float]
    ended: list[float]
    ahead: list[float]
    sent: list[float]

    @classmethod
    def of(cls, size: int) -> "Play":
        """Give one in which nothing has happened yet."""
        return cls(*([0.0] * size for _ in range(4)))


def play_apart(program: Program, *, overlap: bool) -> Play:
    """Play ranks with a device each: times follow from the lists alone, so each rank runs on as far as it can.

    A link's messages leave in the order of their sender's list, so this one pass knows when each one passes.
    """
    play = Play.of(len(program.seconds))
    started, ended, sent = play.started, play.ended, play.sent
    arrived = [-1.0] * len(program.seconds)
    link_free = [0.0] * program.num_links
    source, target, links, lead = program.source, program.target, program.link, program.lead
    seconds, ahead = program.seconds, program.ahead
    position, free = program.offsets[:-1], [0.0] * program.num_ranks
    awake = list(range(program.num_ranks))
    while awake:
        rank = awake.pop()
        now, action, end_of_list = free[rank], position[rank], program.offsets[rank + 1]
        while action < end_of_list:
            if source[action] >= 0:
                arrival = arrived[action]
                if arrival < 0:
                    break
                play.ahead[action] = ahead[action] if arrival > now else 0.0
                now = max(now, arrival)
            started[action] = now
            now += seconds[action]
            ended[action] = now
            receiver = target[action]
            if receiver >= 0:
                number, message_s, latency_s = links[action]
                if number < 0:
                    arrived[receiver] = now
                else:
                    leaves = max(now, link_free[number]) + message_s
                    link_free[number] = leaves
                    arrived[receiver] = max(leaves + lead[action], 0.0)
                    if not overlap:
                        now = leaves + latency_s
                    other = program.rank_of[receiver]
                    if position[other] == receiver:
                        awake.append(other)
            sent[action] = now
            action += 1
        position[rank], free[rank] = action, now
    if position != program.offsets[1:]:
        raise ScheduleError("the schedule cannot be played to its end; `validate` says where and why")
    return play


class SharedPlay:
    """Plays ranks that share processors, event by event.

    Shared computing is exact and fast through a second clock, `worked`: the work that a rank computing since time 0
    would have done. All computing ranks advance by it alike, so that an action's end is fixed on it when the action
    starts.
    """

    def __init__(self, program: Program, concurrency: float) -> None:
        self.now = self.worked = 0.0
        self._program = program
        self._concurrency = concurrency
        self._play = Play.of(len(program.seconds))
        self._has_arrived = [source < 0 for source in program.source]
        self._position = program.offsets[:-1]
        self._is_computing = [False] * program.num_ranks
        self._ahead_since: list[float | None] = [None] * program.num_ranks  # when a rank began what waits for nothing
        self._is_done_ahead = [False] * program.num_ranks
        self._link_free = [0.0] * program.num_links
        self._computing: list[tuple[float, int]] = []  # (end on the clock `worked`, rank)
        self._travelling: list[tuple[float, int, int]] = []  # (arrival, order, the action that waits for it)
        self._order = count()

    def run(self) -> Play:
        """Run to the end."""
        for rank in range(self._program.num_ranks):
            self._start(rank)
        while self._computing or self._travelling:
            self._start(self._advance())
        return self._play

    def _advance(self) -> int:
        """Go to the next moment at which something happens; give the rank to which it does."""
        rate = shared_rate(len(self._computing), self._concurrency)
        ends_in = (self._computing[0][0] - self.worked) / rate if self._computing else float("inf")
        if self._travelling and self._travelling[0][0] - self.now <= ends_in:
            arrival, _, action = heapq.heappop(self._travelling)
            self.worked += (arrival - self.now) * rate
            self.now = arrival
            self._has_arrived[action] = True
            return self._program.rank_of[action]
        self.now += ends_in
        self.worked, rank = heapq.heappop(self._computing)
        self._end(rank)
        return rank

    def _start(self, rank: int) -> None:
        """Start the rank's next action if it is free and what that needs is at hand, else what waits for nothing."""
        action = self._position[rank]
        if self._is_computing[rank] or action == self._program.offsets[rank + 1]:
            return
        work_s, ahead_s = self._program.seconds[action], self._program.ahead[action]
        if self._has_arrived[action]:
            work_s -= ahead_s if self._is_done_ahead[rank] else 0.0
            self._play.started[action] = self.now - self._play.ahead[action]
        elif ahead_s and not self._is_done_ahead[rank]:
            work_s, self._ahead_since[rank] = ahead_s, self.now
        else:
            return
        self._is_computing[rank] = True
        heapq.heappush(self._computing, (self.worked + work_s, rank))

    def _end(self, rank: int) -> None:
        """Book the end of the rank's action, and send what it made."""
        action = self._position[rank]
        self._is_computing[rank] = False
        since = self._ahead_since[rank]
        if since is not None:
            self._ahead_since[rank], self._is_done_ahead[rank] = None, True
            self._play.ahead[action] = self.now - since
            return
        self._is_done_ahead[rank] = False
        self._position[rank] += 1
        self._play.ended[action] = self._play.sent[action] = self.now
        receiver = self._program.target[action]
        if receiver < 0:
            return
        number, message_s, latency_s = self._program.link[action]
        if number < 0:
            self._has_arrived[receiver] = True
            return
        leaves = max(self.now, self._link_free[number]) + message_s
        self._link_free[number] = leaves
        heapq.heappush(self._travelling, (leaves + latency_s, next(self._order), receiver))


def shared_rate(running: int, concurrency: float | None) -> float:
    """Give how fast each rank goes while so many compute on that many processors; 1 is alone."""
    return 1.0 if concurrency is None or running <= concurrency else concurrency / running
