"""Lists made for costs: a free rank does what it can at once, within its memory, and fills what is left with weights.

An event-driven list scheduler with split backwards, on any route. What it prefers is a `Taste`; trying several and
keeping the best is cheap.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from pipelinejob.schedules.actions import Action, ActionKind, F, I, Route, Schedule, W, one_route
from pipelinejob.schedules.costs import Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """What a rank prefers.

    `forwards_first`: a forward before an input gradient that is as ready. `deep_first`: among forwards, that of the
    later chunk. `patience`: the share of a weight gradient's time for which a rank rather waits for an action on its
    way than begins the weight gradient.
    """

    forwards_first: bool = False
    deep_first: bool = True
    patience: float = 0.0


TASTES = tuple(
    Taste(forwards_first=forwards, patience=patience) for forwards, patience in product((False, True), (0.0, 0.5, 1.0))
)


class _Offer(NamedTuple):
    ready_s: float
    kind: ActionKind
    micro_batch: int
    stage: int


@dataclass(slots=True)
class _Rank:
    cap: int  # chunks of micro-batches that it may hold
    free_s: float = 0.0
    held: int = 0
    offers: list[_Offer] = field(default_factory=list)
    weights: list[tuple[int, int]] = field(default_factory=list)  # (micro-batch, stage), oldest first
    actions: list[Action] = field(default_factory=list)


def schedule_for(
    route: Route, num_micro_batches: int, costs: Costs, caps: Sequence[int], taste: Taste
) -> Schedule | None:
    """Make a schedule; None where it gets stuck, ranks waiting for each other's room.

    `caps` are in chunks of micro-batches, held from the forward to the weight gradient.
    """
    return _Scheduler(route, num_micro_batches, costs, caps, taste).run()


class _Scheduler:
    def __init__(self, route: Route, num_micro_batches: int, costs: Costs, caps: Sequence[int], taste: Taste) -> None:
        self._route = route
        self._last = len(route) - 1
        self._chunks = tuple(route[:stage].count(rank) for stage, rank in enumerate(route))
        self._later = tuple(route[stage + 1 :].count(rank) for stage, rank in enumerate(route))
        self._num_micro_batches = num_micro_batches
        self._costs = costs
        self._speeds = costs.speeds or (1.0,) * len(caps)
        self._taste = taste
        self._ranks = [_Rank(cap) for cap in caps]
        self._moments: list[tuple[float, int]] = []
        self._link_free: dict[tuple[int, int], float] = {}

    def run(self) -> Schedule | None:
        for micro_batch in range(self._num_micro_batches):
            self._offer(0.0, ActionKind.FORWARD, micro_batch, 0)
        while self._moments:
            now, number = heapq.heappop(self._moments)
            self._work(number, now)
        if any(rank.offers or rank.weights for rank in self._ranks):
            return None
        return one_route(self._route, [rank.actions for rank in self._ranks], self._num_micro_batches)

    def _offer(self, ready_s: float, kind: ActionKind, micro_batch: int, stage: int) -> None:
        number = self._route[stage]
        self._ranks[number].offers.append(_Offer(ready_s, kind, micro_batch, stage))
        heapq.heappush(self._moments, (ready_s, number))

    def _work(self, number: int, now: float) -> None:
        rank = self._ranks[number]
        if rank.free_s > now:
            return
        ready = [offer for offer in rank.offers if offer.ready_s <= now and self._has_room(rank, offer)]
        if ready:
            self._do(number, now, min(ready, key=self._order))
        elif rank.weights and not self._is_worth_waiting(rank, now):
            self._do_weight(number, now)

    def _order(self, offer: _Offer) -> tuple[float, ...]:
        is_forward = offer.kind is ActionKind.FORWARD
        depth = -offer.stage if self._taste.deep_first else 0
        return (is_forward != self._taste.forwards_first, *((depth,) if is_forward else ()), offer.micro_batch)

    def _has_room(self, rank: _Rank, offer: _Offer) -> bool:
        # Room is left for the later chunks of a micro-batch that is let in, or ranks would wait for each other's.
        return offer.kind is not ActionKind.FORWARD or rank.held + self._later[offer.stage] < rank.cap

    def _is_worth_waiting(self, rank: _Rank, now: float) -> bool:
        until = now + self._taste.patience * self._seconds(ActionKind.WEIGHT, rank.weights[0][1])
        return any(now < offer.ready_s < until and self._has_room(rank, offer) for offer in rank.offers)

    def _seconds(self, kind: ActionKind, stage: int) -> float:
        costs = {
            ActionKind.FORWARD: self._costs.forward_s,
            ActionKind.INPUT: self._costs.input_s,
            ActionKind.WEIGHT: self._costs.weight_s,
        }
        return costs[kind][stage] / self._speeds[self._route[stage]]

    def _do(self, number: int, now: float, offer: _Offer) -> None:
        rank = self._ranks[number]
        rank.offers.remove(offer)
        _, kind, micro_batch, stage = offer
        rank.free_s = now + self._seconds(kind, stage)
        heapq.heappush(self._moments, (rank.free_s, number))
        if kind is ActionKind.FORWARD:
            rank.held += 1
            rank.actions.append(F(micro_batch, self._chunks[stage]))
            if stage < self._last:
                self._send(rank.free_s, kind, micro_batch, stage, stage + 1)
            else:
                self._offer(rank.free_s, ActionKind.INPUT, micro_batch, stage)
        else:
            rank.actions.append(I(micro_batch, self._chunks[stage]))
            rank.weights.append((micro_batch, stage))
            if stage > 0:
                self._send(rank.free_s, kind, micro_batch, stage, stage - 1)

    def _do_weight(self, number: int, now: float) -> None:
        rank = self._ranks[number]
        micro_batch, stage = rank.weights.pop(0)
        rank.held -= 1
        rank.actions.append(W(micro_batch, self._chunks[stage]))
        rank.free_s = now + self._seconds(ActionKind.WEIGHT, stage)
        heapq.heappush(self._moments, (rank.free_s, number))

    def _send(self, now: float, kind: ActionKind, micro_batch: int, stage: int, target: int) -> None:
        ends = self._route[stage], self._route[target]
        link = self._costs.between(*ends)
        leaves = max(now, self._link_free.get(ends, 0.0)) + link.message_s
        if ends[0] != ends[1]:
            self._link_free[ends] = leaves
        self._offer(leaves + link.latency_s, kind, micro_batch, target)
