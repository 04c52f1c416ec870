"""The clock that actions are played on: when each of them starts and ends, on devices of their own or shared ones.

`simulate.py` says what the model is.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise

from pipelinejob.schedules.actions import GIVES_GRADIENT, ActionKind, Schedule, ScheduleError, Work
from pipelinejob.schedules.costs import Costs
from pipelinejob.schedules.timetable import Jobs, timetable
from pipelinejob.simulation.result import Times


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
        # From when its message has left to when the action that waits for it can start: to have
        # done a part of that by then is to have had the message by so much sooner.
        leads = self.link
        if any(self.ahead):
            leads = [
                (number, message_s, latency_s - (self.ahead[receiver] if receiver >= 0 else 0.0))
                for (number, message_s, latency_s), receiver in zip(self.link, self.target, strict=True)
            ]
        self.jobs = Jobs(
            rank_of=self.rank_of, source=self.source, target=self.target, links=leads, num_links=self.num_links
        )

    def of_rank(self, values: list[float], rank: int) -> list[float]:
        return values[self.offsets[rank] : self.offsets[rank + 1]]

    def by_rank(self, values: list[float]) -> Times:
        return tuple(tuple(self.of_rank(values, rank)) for rank in range(self.num_ranks))


def _work_s(work: Work, costs: Costs, slowdown: float, update_s: Sequence[float]) -> float:
    """Return the seconds of an action."""
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
    """Return the part of an action's seconds that can pass before its gradient has arrived."""
    return costs.ahead_of_gradient_s(work.stage, work.rank) * slowdown if work.kind in GIVES_GRADIENT else 0.0


@dataclass(slots=True)
class Play:
    """When each action started and ended, and when its rank was free again.

    `ahead` is how much of it passed ahead of a wait, `waited` what of it others had the processor.
    """

    started: list[float]
    ended: list[float]
    ahead: list[float]
    waited: list[float]
    sent: list[float]

    @classmethod
    def of(cls, size: int) -> "Play":
        """Return a play of `size` actions, none of which has started."""
        return cls(*([0.0] * size for _ in range(5)))


def play_apart(program: Program, *, overlap: bool) -> Play:
    """Play ranks with a device each.

    Raises ScheduleError where ranks wait for each other for ever.
    """
    lists = [list(range(first, end)) for first, end in pairwise(program.offsets)]
    latency_s = None if overlap else [latency_s for _, _, latency_s in program.link]
    table = timetable(program.jobs, lists, program.seconds, latency_s=latency_s)
    if table is None:
        raise ScheduleError("the schedule cannot be played to its end; `validate` says where and why")
    ended = list(map(float.__add__, table.started, program.seconds))
    sent = ended
    if table.arrived:
        sent = list(ended)
        for action, arrived in table.arrived.items():
            sent[action] = arrived
    ahead = _done_ahead(program, table.started, sent)
    return Play(started=table.started, ended=ended, ahead=ahead, waited=[0.0] * len(ended), sent=sent)


def _done_ahead(program: Program, started: Sequence[float], free: Sequence[float]) -> list[float]:
    """Return how much of each action passed while its rank waited for the message that it needs."""
    done = [0.0] * len(started)
    if not any(program.ahead):
        return done
    for action, ahead_s in enumerate(program.ahead):
        if ahead_s and program.source[action] >= 0:
            is_first = action == program.offsets[program.rank_of[action]]
            if started[action] > (0.0 if is_first else free[action - 1]):
                done[action] = ahead_s
    return done


class ProcessorSharing:
    """Plays ranks that share processors, event by event.

    Shared computing is exact and fast through a second clock, `worked`: the work that a rank
    computing since time 0 would have done. All computing ranks advance by it alike, so that an
    action's end is fixed on it when the action starts.
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
        """Play all actions."""
        for rank in range(self._program.num_ranks):
            self._start(rank)
        while self._computing or self._travelling:
            self._start(self._advance())
        return self._play

    def _advance(self) -> int:
        """Advance to the next event; return the rank that it concerns."""
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
        """Start the rank's next action if its input has arrived, else the part of it that needs no input."""
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
        """Record the end of the rank's action, and send its result."""
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
        elapsed_s = self.now - self._play.started[action]
        self._play.waited[action] = max(elapsed_s - self._program.seconds[action], 0.0)
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
    """Return each rank's speed while `running` ranks share `concurrency` processors.

    1 is full speed.
    """
    return 1.0 if concurrency is None or running <= concurrency else concurrency / running
