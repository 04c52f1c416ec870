"""Plays a schedule on the clock of its predicted costs: when an action runs, why a rank waits, how long a step is.

Exact for its model: a rank runs one action at a time in its list's order; receives are posted ahead and sends are
asynchronous, so that a message leaves when its action ends, crosses its link (one message at a time each way, then the
latency), and waits at the other side until it is wanted. What of a backward pass needs no gradient is done while the
rank waits for that one. Without `overlap` a rank does nothing else until its message has arrived. Ranks either have a
device each, or share one node's `concurrency` k by processor sharing: while n > k of them compute, each goes at k/n of
its speed.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from pipelinejob.schedules.actions import GIVES_GRADIENT, Action, ActionKind, Schedule, ScheduleError, Work
from pipelinejob.schedules.causes import WaitCause, wait_causes
from pipelinejob.schedules.costs import Costs
from pipelinejob.timeline import Span, SpanKind, StageTimeline, Timeline

Times = tuple[tuple[float, ...], ...]  # of each rank's actions, in order

SPAN_KINDS = {
    ActionKind.FORWARD: SpanKind.FORWARD,
    ActionKind.BACKWARD: SpanKind.BACKWARD_INPUT,
    ActionKind.INPUT: SpanKind.BACKWARD_INPUT,
    ActionKind.WEIGHT: SpanKind.BACKWARD_WEIGHT,
    ActionKind.UPDATE: SpanKind.OPTIMIZER,
}


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What is expected of one step.

    An action whose first `ahead_s` passed before it waited for its gradient counts as if it had run through, from so
    much later on: what `ended_s` and `started_s` are apart is what it computed.
    `makespan_s` ends with the last action; after it come what is left of the gradient reduction over replicas
    (`reduced_s`, when each rank has its sums), the barrier at which the global norm becomes known, and the optimiser.
    """

    schedule: Schedule
    started_s: Times
    ended_s: Times
    ahead_s: Times
    sent_s: Times  # when the rank was free again: without overlap, once the message had arrived
    makespan_s: float
    reduced_s: tuple[float, ...]
    step_s: float
    optimizer_s: tuple[float, ...]

    @cached_property
    def compute_s(self) -> tuple[float, ...]:
        """Give each rank's seconds of computing within the makespan."""
        return tuple(sum(ended) - sum(started) for started, ended in zip(self.started_s, self.ended_s, strict=True))

    @property
    def bubble_ratios(self) -> tuple[float, ...]:
        """Give each rank's share of waiting, as timeline.bubble_ratio has it."""
        return tuple(1 - compute / self.makespan_s for compute in self.compute_s)

    @property
    def bubble_rate(self) -> float:
        """Give (T - ideal) / T, T being the makespan and the ideal the mean rank's computing."""
        return sum(self.bubble_ratios) / len(self.bubble_ratios)

    @property
    def longest_span_s(self) -> float:
        """Give the longest time that a rank takes from its first action's start to its last one's end."""
        return max(ended[-1] - started[0] for started, ended in zip(self.started_s, self.ended_s, strict=True))

    @property
    def span_bubble_rate(self) -> float:
        """Give the bubble rate by the longest span of a rank instead of the makespan.

        So counts the zero-bubble paper (Qi et al. 2024, arXiv 2401.10241): without a barrier at its end, the next step
        of a rank begins where this one ended, and the skew between ranks costs nothing.
        """
        return 1 - sum(self.compute_s) / len(self.compute_s) / self.longest_span_s

    @cached_property
    def idle_s(self) -> tuple[dict[WaitCause, float], ...]:
        """Give each rank's idle seconds by cause; with `compute_s` they add up to the makespan."""
        return tuple(self._idle_of(rank) for rank in range(self.schedule.num_ranks))

    def _idle_of(self, rank: int) -> dict[WaitCause, float]:
        idle = dict.fromkeys(WaitCause, 0.0)
        now = 0.0
        times = zip(self.started_s[rank], self.ended_s[rank], self.sent_s[rank], strict=True)
        for cause, (start, end, sent) in zip(wait_causes(self.schedule.ranks[rank]), times, strict=True):
            idle[cause] += start - now
            idle[WaitCause.SEND] += sent - end
            now = sent
        idle[WaitCause.BARRIER] += self.makespan_s - now
        return idle

    def activations(self, rank: int) -> tuple[tuple[float, float], ...]:
        """Give (seconds, micro-batches held from then on), in shares of a micro-batch; the memory over time."""
        share = 1 / len(self.schedule.stages_of[0][rank])
        held, curve = 0.0, []
        times = zip(self.schedule.ranks[rank], self.started_s[rank], self.ended_s[rank], strict=True)
        for action, start, end in times:
            if action.kind is ActionKind.FORWARD:
                held += share
                curve.append((start, held))
            elif action.kind in {ActionKind.BACKWARD, ActionKind.WEIGHT}:
                held -= share
                curve.append((end, held))
        return tuple(curve)

    @property
    def timeline(self) -> Timeline:
        """Give the spans: every second of every rank from 0 to the step's end is in exactly one."""
        stages = (
            StageTimeline(stage=rank, step=0, spans=tuple(self._spans(rank))) for rank in range(self.schedule.num_ranks)
        )
        return Timeline(source="predicted", stages=tuple(stages))

    def _spans(self, rank: int) -> list[Span]:
        spans: list[Span] = []
        now = 0.0
        actions = self.schedule.ranks[rank]
        times = zip(self.started_s[rank], self.ended_s[rank], self.ahead_s[rank], self.sent_s[rank], strict=True)
        for action, cause, (start, end, ahead, sent) in zip(actions, wait_causes(actions), times, strict=True):
            kind = SPAN_KINDS[action.kind]
            if ahead:
                spans.append(_span(kind, now, now + ahead, action))
            if start > now:
                spans.append(_span(SpanKind.RECV, now + ahead, start + ahead, action, cause))
            spans.append(_span(kind, start + ahead, end, action))
            if sent > end:
                spans.append(_span(SpanKind.SEND, end, sent, action, WaitCause.SEND))
            now = sent
        updated = self.step_s - max(self.optimizer_s)
        if updated > now:
            spans.append(Span(kind=SpanKind.IDLE, start_s=now, end_s=updated, cause=WaitCause.BARRIER))
        end = updated + self.optimizer_s[rank]
        if end > updated:
            spans.append(Span(kind=SpanKind.OPTIMIZER, start_s=updated, end_s=end))
        if self.step_s > end:
            spans.append(Span(kind=SpanKind.IDLE, start_s=end, end_s=self.step_s, cause=WaitCause.BARRIER))
        return spans


def _span(kind: SpanKind, start_s: float, end_s: float, action: Action, cause: WaitCause | None = None) -> Span:
    is_update = action.kind is ActionKind.UPDATE
    return Span(
        kind=kind,
        start_s=start_s,
        end_s=end_s,
        micro_batch=None if is_update else action.micro_batch,
        chunk=None if is_update else action.chunk,
        cause=cause and cause.value,
    )


def simulate(
    schedule: Schedule,
    costs: Costs,
    *,
    overlap: bool = True,
    concurrency: float | None = None,
    slowdowns: Sequence[float] | None = None,
    reduction_s: Sequence[float] = (),
    barrier_s: float = 0.0,
    optimizer_s: Sequence[float] = (),
) -> Simulation:
    """Predict one step; the schedule must be valid (`validate`).

    `slowdowns` multiplies the seconds of each rank (a straggler). `reduction_s` is what summing a stage's gradients
    over replicas takes, stage by stage; a rank sums a chunk's as soon as its last gradient is there, while it computes
    on. `barrier_s` is the global norm's all-reduce; `optimizer_s` each rank's update, after the barrier or, in an
    asynchronous schedule, at each `O` action. `overlap` False (a rank waits for its messages to arrive) goes with a
    device for each rank only. Raises ScheduleError where ranks wait for each other for ever.
    """
    program = _Program(schedule, costs, slowdowns, optimizer_s if schedule.is_asynchronous else ())
    if concurrency is None or concurrency >= schedule.num_ranks:
        play = _play_apart(program, overlap=overlap)
    else:
        play = _SharedPlay(program, concurrency).run()
    makespan_s = max(play.ended, default=0.0)
    sent = play.sent if not overlap else play.ended
    updates = tuple(optimizer_s) if optimizer_s and not schedule.is_asynchronous else (0.0,) * schedule.num_ranks
    reduced = tuple(reduced_s(schedule, rank, program.of_rank(play.ended, rank), reduction_s)
                    for rank in range(schedule.num_ranks))  # fmt: skip
    last_sent = max(sent, default=0.0)
    return Simulation(
        schedule=schedule,
        started_s=program.by_rank(play.started),
        ended_s=program.by_rank(play.ended),
        ahead_s=program.by_rank(play.ahead),
        sent_s=program.by_rank(sent),
        makespan_s=max(makespan_s, last_sent),
        reduced_s=reduced,
        step_s=max(makespan_s, last_sent, *reduced) + barrier_s + shared_seconds(updates, concurrency),
        optimizer_s=_stretched(updates, concurrency),
    )


def shared_seconds(work_s: Sequence[float], concurrency: float | None) -> float:
    """Give the time until all ranks, started together, have done their work once, the device or devices shared."""
    if concurrency is None:
        return max(work_s)
    now = done = 0.0
    for ended, work in enumerate(sorted(work_s)):
        now += (work - done) / _rate(len(work_s) - ended, concurrency)
        done = work
    return now


def _stretched(work_s: tuple[float, ...], concurrency: float | None) -> tuple[float, ...]:
    """Give what work started together takes each rank: those that share a node slow each other down alike."""
    longest = max(work_s)
    stretch = shared_seconds(work_s, concurrency) / longest if longest else 1.0
    return tuple(work * stretch for work in work_s)


def _rate(running: int, concurrency: float | None) -> float:
    return 1.0 if concurrency is None or running <= concurrency else concurrency / running


def reduced_s(schedule: Schedule, rank: int, ended: Sequence[float], reduction_s: Sequence[float]) -> float:
    """Give when a rank has the sums of its gradients; a chunk's are summed once its last gradient is there."""
    if not reduction_s:
        return 0.0
    last: dict[int, float] = {}
    for action, end in zip(schedule.ranks[rank], ended, strict=True):
        if action.kind in {ActionKind.BACKWARD, ActionKind.WEIGHT}:
            last[schedule.stage_of(rank, action)] = end
    now = 0.0
    for stage, end in sorted(last.items(), key=lambda item: item[1]):
        now = max(now, end) + reduction_s[stage]
    return now


class _Program:
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
class _Play:
    """When each action started and ended, how much of it passed ahead of a wait, and when its rank was free again."""

    started: list[float]
    ended: list[float]
    ahead: list[float]
    sent: list[float]

    @classmethod
    def of(cls, size: int) -> "_Play":
        """Give one in which nothing has happened yet."""
        return cls(*([0.0] * size for _ in range(4)))


def _play_apart(program: _Program, *, overlap: bool) -> _Play:
    """Play ranks with a device each: times follow from the lists alone, so each rank runs on as far as it can.

    A link's messages leave in the order of their sender's list, so this one pass knows when each one passes.
    """
    play = _Play.of(len(program.seconds))
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


class _SharedPlay:
    """Plays ranks that share processors, event by event.

    Shared computing is exact and fast through a second clock, `worked`: the work that a rank computing since time 0
    would have done. All computing ranks advance by it alike, so that an action's end is fixed on it when the action
    starts.
    """

    def __init__(self, program: _Program, concurrency: float) -> None:
        self.now = self.worked = 0.0
        self._program = program
        self._concurrency = concurrency
        self._play = _Play.of(len(program.seconds))
        self._has_arrived = [source < 0 for source in program.source]
        self._position = program.offsets[:-1]
        self._is_computing = [False] * program.num_ranks
        self._ahead_since: list[float | None] = [None] * program.num_ranks  # when a rank began what waits for nothing
        self._link_free = [0.0] * program.num_links
        self._computing: list[tuple[float, int]] = []  # (end on the clock `worked`, rank)
        self._travelling: list[tuple[float, int, int]] = []  # (arrival, order, the action that waits for it)
        self._order = count()

    def run(self) -> _Play:
        """Run to the end."""
        for rank in range(self._program.num_ranks):
            self._start(rank)
        while self._computing or self._travelling:
            self._start(self._advance())
        return self._play

    def _advance(self) -> int:
        """Go to the next moment at which something happens; give the rank to which it does."""
        rate = _rate(len(self._computing), self._concurrency)
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
        passed_s = self._play.ahead[action]
        if self._has_arrived[action]:
            work_s -= ahead_s if passed_s else 0.0
            self._play.started[action] = self.now - passed_s
        elif ahead_s and not passed_s:
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
            self._ahead_since[rank], self._play.ahead[action] = None, self.now - since
            return
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
