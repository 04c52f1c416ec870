"""The predicted times of one step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob.schedules.actions import Action, ActionKind, Schedule
from pipelinejob.schedules.causes import WaitCause, wait_causes

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
    """The predicted times of one step.

    An action whose first `ahead_s` passed before it waited for its gradient counts as if it had
    run through, from so much later on: what `ended_s` and `started_s` are apart is what it
    computed, and `waited_s` of that, where ranks share processors, others had them. `makespan_s`
    ends with the last action; after it come what is left of the gradient reduction over replicas
    (`reduced_s`, when each rank has its sums), the barrier at which the global norm becomes known,
    and the optimiser.
    """

    schedule: Schedule
    started_s: Times
    ended_s: Times
    ahead_s: Times
    waited_s: Times
    sent_s: Times  # when the rank was free again: without overlap, once the message had arrived
    makespan_s: float
    reduced_s: tuple[float, ...]
    step_s: float
    optimizer_s: tuple[float, ...]

    @cached_property
    def compute_s(self) -> tuple[float, ...]:
        """Each rank's seconds of computing within the makespan."""
        ranks = zip(self.started_s, self.ended_s, self.waited_s, strict=True)
        return tuple(sum(ended) - sum(started) - sum(waited) for started, ended, waited in ranks)

    @property
    def bubble_ratios(self) -> tuple[float, ...]:
        """Each rank's share of waiting, as timeline.bubble_ratio has it."""
        return tuple(1 - compute / self.makespan_s for compute in self.compute_s)

    @property
    def bubble_rate(self) -> float:
        """(T - ideal) / T, T being the makespan and the ideal the mean rank's computing."""
        return sum(self.bubble_ratios) / len(self.bubble_ratios)

    @property
    def longest_span_s(self) -> float:
        """The longest time that a rank takes from its first action's start to its last one's end."""
        return max(ended[-1] - started[0] for started, ended in zip(self.started_s, self.ended_s, strict=True))

    @property
    def span_bubble_rate(self) -> float:
        """The bubble rate by the longest span of a rank instead of the makespan.

        So counts the zero-bubble paper (Qi et al. 2024, arXiv 2401.10241): without a barrier at
        its end, the next step of a rank begins where this one ended, and the skew between ranks
        costs nothing.
        """
        return 1 - sum(self.compute_s) / len(self.compute_s) / self.longest_span_s

    @cached_property
    def idle_s(self) -> tuple[dict[WaitCause, float], ...]:
        """Each rank's idle seconds by cause; with `compute_s` they add up to the makespan."""
        return tuple(self._idle_of(rank) for rank in range(self.schedule.num_ranks))

    def _idle_of(self, rank: int) -> dict[WaitCause, float]:
        idle = dict.fromkeys(WaitCause, 0.0)
        now = 0.0
        times = zip(self.started_s[rank], self.ended_s[rank], self.waited_s[rank], self.sent_s[rank], strict=True)
        for cause, (start, end, waited, sent) in zip(wait_causes(self.schedule.ranks[rank]), times, strict=True):
            idle[cause] += start - now
            idle[WaitCause.PROCESSOR] += waited
            idle[WaitCause.SEND] += sent - end
            now = sent
        idle[WaitCause.BARRIER] += self.makespan_s - now
        return idle

    def activations(self, rank: int) -> tuple[tuple[float, float], ...]:
        """Return (seconds, micro-batches held from then on), in shares of a micro-batch.

        The memory over time.
        """
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
        """The spans: every second of every rank from 0 to the step's end is in exactly one."""
        stages = (
            StageTimeline(stage=rank, step=0, spans=tuple(self._spans(rank))) for rank in range(self.schedule.num_ranks)
        )
        return Timeline(source="predicted", stages=tuple(stages))

    def _spans(self, rank: int) -> list[Span]:
        spans: list[Span] = []
        now = 0.0
        actions = self.schedule.ranks[rank]
        of_actions = zip(self.started_s[rank], self.ended_s[rank], self.ahead_s[rank], self.sent_s[rank], strict=True)
        shares = self._shares_waited(rank)
        for action, cause, share, times in zip(actions, wait_causes(actions), shares, of_actions, strict=True):
            start, end, ahead, sent = times
            if ahead:
                spans += _computing(now, now + ahead, action, share)
            if start > now:
                spans.append(_span(SpanKind.RECV, now + ahead, start + ahead, action, cause))
            spans += _computing(start + ahead, end, action, share)
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

    def _shares_waited(self, rank: int) -> Iterator[float]:
        """Yield the share of each action's time in which others had the processor."""
        for start, end, waited in zip(self.started_s[rank], self.ended_s[rank], self.waited_s[rank], strict=True):
            yield waited / (end - start) if waited else 0.0


def _computing(start_s: float, end_s: float, action: Action, share_waited: float) -> Iterator[Span]:
    """Yield the spans of (a part of) an action.

    What it waits for a processor is drawn as one wait before it.
    """
    begins_s = start_s + max(end_s - start_s, 0.0) * share_waited  # what was all done ahead may round below 0
    if begins_s > start_s:
        yield _span(SpanKind.IDLE, start_s, begins_s, action, WaitCause.PROCESSOR)
    yield _span(SPAN_KINDS[action.kind], begins_s, end_s, action)


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
