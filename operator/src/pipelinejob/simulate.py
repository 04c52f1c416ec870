"""Plays a schedule on the clock of its predicted costs: when an action runs, why a stage waits, how long a step is.

An event simulation, exact for its model: a stage runs one action at a time in its list's order; receives are posted
ahead and sends are asynchronous, so that a message leaves when its action ends, crosses its link (one message at a time
each way, then the latency), and waits at the other side until it is wanted. Stages either have a device each, or share
one node's `concurrency` k by processor sharing: while n > k of them compute, each goes at k/n of its speed.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from pipelinejob.schedule import Action, ActionKind, Actions, WaitCause, wait_causes
from pipelinejob.timeline import Span, SpanKind, StageTimeline, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One boundary between neighbouring stages, the same both ways."""

    latency_s: float = 0.0
    message_s: float = 0.0  # bytes of a message / bandwidth: how long it occupies the link


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is expected of one step's schedule, before optimiser and overhead."""

    schedule: Actions
    started_s: tuple[tuple[float, ...], ...]  # of each stage's actions, in order
    ended_s: tuple[tuple[float, ...], ...]
    makespan_s: float

    @property
    def timeline(self) -> Timeline:
        """Give the spans: every second of every stage from 0 to the makespan is in exactly one."""
        stages = (StageTimeline(stage=i, step=0, spans=self._spans(i)) for i in range(len(self.schedule)))
        return Timeline(source="predicted", stages=tuple(stages))

    @property
    def compute_s(self) -> tuple[float, ...]:
        """Give each stage's seconds of computing."""
        return tuple(sum(ended) - sum(started) for started, ended in zip(self.started_s, self.ended_s, strict=True))

    @property
    def bubble_ratios(self) -> tuple[float, ...]:
        """Give each stage's share of waiting, as timeline.bubble_ratio has it."""
        return tuple(1 - compute / self.makespan_s for compute in self.compute_s)

    def _spans(self, stage: int) -> tuple[Span, ...]:
        spans: list[Span] = []
        now = 0.0
        actions = self.schedule[stage]
        times = zip(self.started_s[stage], self.ended_s[stage], strict=True)
        for action, cause, (start, end) in zip(actions, wait_causes(actions), times, strict=True):
            if start > now:
                spans.append(_span(SpanKind.RECV, now, start, action.micro_batch, cause))
            spans.append(_span(_KINDS[action.kind], start, end, action.micro_batch))
            now = end
        if self.makespan_s > now:
            spans.append(_span(SpanKind.IDLE, now, self.makespan_s, cause=WaitCause.DRAIN))
        return tuple(spans)


_KINDS = {ActionKind.FORWARD: SpanKind.FORWARD, ActionKind.BACKWARD: SpanKind.BACKWARD_INPUT}


def _span(
    kind: SpanKind, start_s: float, end_s: float, micro_batch: int | None = None, cause: WaitCause | None = None
) -> Span:
    return Span(kind=kind, start_s=start_s, end_s=end_s, micro_batch=micro_batch, cause=cause and cause.value)


def simulate(
    schedule: Actions,
    *,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    links: Sequence[Link] = (),
    concurrency: float | None = None,
) -> Simulation:
    """Predict one step; the schedule must be valid.

    `forward_s` and `backward_s` are a stage's seconds for one micro-batch when it computes alone; `links[i]` joins
    stages i and i+1, free of cost if there are none.
    """
    run = _Run(schedule, forward_s, backward_s, links or [Link()] * (len(schedule) - 1), concurrency)
    run.play()
    return Simulation(
        schedule=schedule,
        started_s=tuple(map(tuple, run.started)),
        ended_s=tuple(map(tuple, run.ended)),
        makespan_s=run.now,
    )


def shared_seconds(work_s: Sequence[float], concurrency: float | None) -> float:
    """Give the time until all stages, started together, have done their work once, the device or devices shared."""
    if concurrency is None:
        return max(work_s)
    now = done = 0.0
    for ended, work in enumerate(sorted(work_s)):
        now += (work - done) / _rate(len(work_s) - ended, concurrency)
        done = work
    return now


def _rate(running: int, concurrency: float | None) -> float:
    return 1.0 if concurrency is None or running <= concurrency else concurrency / running


class _Run:
    """The state of one simulation.

    Shared computing is exact and fast through a second clock, `worked`: the work that a stage computing since time 0
    would have done. All computing stages advance by it alike, so that an action's end is fixed on it when the action
    starts.
    """

    def __init__(
        self,
        schedule: Actions,
        forward_s: Sequence[float],
        backward_s: Sequence[float],
        links: Sequence[Link],
        concurrency: float | None,
    ) -> None:
        self.now = self.worked = 0.0
        self.started: list[list[float]] = [[] for _ in schedule]
        self.ended: list[list[float]] = [[] for _ in schedule]
        self._schedule = schedule
        self._seconds = {ActionKind.FORWARD: forward_s, ActionKind.BACKWARD: backward_s}
        self._links = links
        self._concurrency = concurrency
        self._received: list[set[Action]] = [set() for _ in schedule]  # what each stage has from its neighbours
        self._link_free = dict.fromkeys(((s, d) for s in range(len(schedule)) for d in (-1, 1)), 0.0)
        self._computing: list[tuple[float, int]] = []  # (end on the clock `worked`, stage)
        self._travelling: list[tuple[float, int, int, Action]] = []  # (arrival, order, stage, what it comes from)
        self._order = count()

    def play(self) -> None:
        """Run to the end."""
        for stage in range(len(self._schedule)):
            self._start(stage)
        while self._computing or self._travelling:
            self._start(self._advance())

    def _advance(self) -> int:
        """Go to the next moment at which something happens; give the stage to which it does."""
        rate = _rate(len(self._computing), self._concurrency)
        ends_in = (self._computing[0][0] - self.worked) / rate if self._computing else float("inf")
        if self._travelling and self._travelling[0][0] - self.now <= ends_in:
            arrival, _, stage, action = heapq.heappop(self._travelling)
            self.worked += (arrival - self.now) * rate
            self.now = arrival
            self._received[stage].add(action)
            return stage
        self.now += ends_in
        self.worked, stage = heapq.heappop(self._computing)
        self._end(stage)
        return stage

    def _start(self, stage: int) -> None:
        """Start the stage's next action if it is free and what the action needs is at hand."""
        position = len(self.ended[stage])
        if len(self.started[stage]) > position or position == len(self._schedule[stage]):
            return
        action = self._schedule[stage][position]
        if self._is_first_to(stage, action) or action in self._received[stage]:
            self.started[stage].append(self.now)
            heapq.heappush(self._computing, (self.worked + self._seconds[action.kind][stage], stage))

    def _is_first_to(self, stage: int, action: Action) -> bool:
        """Say whether the action waits for no neighbour: forwards begin at the first stage, backwards at the last."""
        return stage == (0 if action.kind is ActionKind.FORWARD else len(self._schedule) - 1)

    def _end(self, stage: int) -> None:
        """Book the end of the stage's action, and send what it made."""
        action = self._schedule[stage][len(self.ended[stage])]
        self.ended[stage].append(self.now)
        direction = 1 if action.kind is ActionKind.FORWARD else -1
        if 0 <= stage + direction < len(self._schedule):
            self._send(stage, direction, action)

    def _send(self, stage: int, direction: int, action: Action) -> None:
        link = self._links[min(stage, stage + direction)]
        free = max(self.now, self._link_free[stage, direction]) + link.message_s
        self._link_free[stage, direction] = free
        heapq.heappush(self._travelling, (free + link.latency_s, next(self._order), stage + direction, action))
