"""Lists made by playing a rule: all stages take equal time, and a free rank does what the rule puts first.

Good for schedules that papers give as a rule and a picture, with full backwards, on any routes.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelinejob.schedules.actions import Action, B, F, Place, Route, Schedule


class Candidate(NamedTuple):
    """A forward or backward that a rank could do next."""

    is_forward: bool
    micro_batch: int
    stage: int


Rule = Callable[[Candidate], tuple[int, ...]]  # what is least is done first


@dataclass(slots=True)
class _Rank:
    cap: int  # chunks of micro-batches that may be held
    free_at: int = 0
    held: int = 0
    actions: list[Candidate] = field(default_factory=list)
    waiting: list[tuple[int, tuple[int, ...], Candidate]] = field(default_factory=list)  # (ready at, order, what)

    def next_at(self, now: int, last_stage: int) -> tuple[int, tuple[int, ...], Candidate] | None:
        """Give what is first of what could start now; a forward that would be held waits for room."""
        if self.free_at > now:
            return None
        startable = [
            each
            for each in self.waiting
            if each[0] <= now and (not each[2].is_forward or self.held < self.cap or each[2].stage == last_stage)
        ]
        return min(startable, key=lambda each: each[1], default=None)


def play_rule(
    routes: tuple[Route, ...],
    route_of: tuple[int, ...],
    rule: Rule,
    *,
    caps: Sequence[int],
    forward: int = 1,
    backward: int = 2,
) -> Schedule | None:
    """Give the schedule that a rule makes, or None where it gets stuck, every rank at its cap.

    `caps` bounds the chunks of micro-batches that each rank holds; the last stage's forward needs no room, for its
    backward can follow at once. `forward` and `backward` are the times of an action, in units.
    """
    shape = Schedule(routes=routes, route_of=route_of, ranks=((),) * len(caps))
    ranks = [_Rank(cap) for cap in caps]
    last = shape.num_stages - 1

    def offer(ready_at: int, candidate: Candidate) -> None:
        rank = shape.place_of(candidate.micro_batch, candidate.stage).rank
        ranks[rank].waiting.append((ready_at, rule(candidate), candidate))

    for micro_batch in range(shape.num_micro_batches):
        offer(0, Candidate(is_forward=True, micro_batch=micro_batch, stage=0))
    moments = [0]
    while moments:
        now = heapq.heappop(moments)
        for rank in ranks:
            first = rank.next_at(now, last)
            if first is None:
                continue
            rank.waiting.remove(first)
            done = first[2]
            rank.free_at = now + (forward if done.is_forward else backward)
            rank.held += 1 if done.is_forward else -1
            rank.actions.append(done)
            following = _following(done, last)
            if following is not None:
                offer(rank.free_at, following)
            heapq.heappush(moments, rank.free_at)
    if any(rank.waiting for rank in ranks):
        return None
    lists = tuple(tuple(_action(shape.place_of(c.micro_batch, c.stage), c) for c in rank.actions) for rank in ranks)
    return Schedule(routes=routes, route_of=route_of, ranks=lists)


def _following(done: Candidate, last: int) -> Candidate | None:
    if done.is_forward and done.stage < last:
        return done._replace(stage=done.stage + 1)
    if done.is_forward:
        return done._replace(is_forward=False)
    return done._replace(stage=done.stage - 1) if done.stage > 0 else None


def _action(place: Place, candidate: Candidate) -> Action:
    return (F if candidate.is_forward else B)(candidate.micro_batch, place.chunk)
