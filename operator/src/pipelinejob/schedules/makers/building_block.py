"""Schedules that repeat one building block: Qi et al. 2024, "Pipeline Parallelism with Controllable Memory".

arXiv 2405.15362. A block says in which unit slots one micro-batch's forwards and input gradients
run, and the next micro-batch's follow `PERIOD` slots later: two chunks with three actions each
fill a rank. How long an activation lives in the block decides what a rank must hold, so that
memory is chosen with the block.

A list is made in two steps. `_hastened` moves actions of the repeated block into empty slots
before them (the paper's squeezing and reordering), as far as memory allows. `_filled` keeps the
order so found and puts weight gradients, which nobody waits for, where a rank would wait.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipelinejob.schedules.actions import Action, ActionKind, Route, Schedule, one_route

PERIOD = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The slots of one micro-batch, by stage; no two of a rank may be congruent modulo `PERIOD`.

    `weight` are where weight gradients are reckoned with while actions are moved; without them, an
    activation counts as let go with its input gradient, so that more is moved, and waits for
    weight gradients later.
    """

    route: Route
    forward: tuple[int, ...]
    input: tuple[int, ...]
    weight: tuple[int, ...] | None = None


def repeated(block: Block, num_micro_batches: int, *, cap: int) -> Schedule:
    """Repeat a block for each micro-batch, with at most `cap` chunks' activations on each rank.

    `cap` must be no less than what the repeated block itself holds.
    """
    orders = _hastened(block, num_micro_batches, cap)
    return one_route(block.route, _filled(block.route, orders, cap), num_micro_batches)


class _Work(NamedTuple):
    kind: ActionKind
    micro_batch: int
    stage: int


_Order = list[_Work]  # a rank's forwards and input gradients


def _hastened(block: Block, num_micro_batches: int, cap: int) -> list[_Order]:
    """Move each action, earliest first, to the first empty slot after what it needs."""
    slots = dict(_planned(block, num_micro_batches))
    works = sorted(slots, key=slots.__getitem__)
    release = ActionKind.INPUT if block.weight is None else ActionKind.WEIGHT
    horizon = slots[works[-1]] + 1
    planned: list[list[tuple[ActionKind, int]]] = [[] for _ in range(max(block.route) + 1)]
    for work, slot in slots.items():
        planned[block.route[work.stage]].append((work.kind, slot))
    release = ActionKind.INPUT if block.weight is None else ActionKind.WEIGHT
    desks = [_Desk(each, horizon, cap, release) for each in planned]
    for work in works:
        earliest = 1 + max((slots[need] for need in _needs(work, len(block.route))), default=-1)
        slots[work] = desks[block.route[work.stage]].take(work.kind, earliest, slots[work])
    orders: list[_Order] = [[] for _ in desks]
    for work in sorted(slots, key=slots.__getitem__):
        if work.kind is not ActionKind.WEIGHT:
            orders[block.route[work.stage]].append(work)
    return orders


def _planned(block: Block, num_micro_batches: int) -> Iterator[tuple[_Work, int]]:
    for kind, slots in (
        (ActionKind.FORWARD, block.forward),
        (ActionKind.INPUT, block.input),
        (ActionKind.WEIGHT, block.weight or ()),
    ):
        for stage, slot in enumerate(slots):
            for micro_batch in range(num_micro_batches):
                yield _Work(kind, micro_batch, stage), slot + PERIOD * micro_batch


def _needs(work: _Work, num_stages: int) -> Iterator[_Work]:
    """Yield what must run before; micro-batches keep their order on a stage."""
    kind, micro_batch, stage = work
    if micro_batch > 0:
        yield _Work(kind, micro_batch - 1, stage)
    if kind is ActionKind.FORWARD and stage > 0:
        yield _Work(kind, micro_batch, stage - 1)
    if kind is ActionKind.INPUT:
        yield _Work(ActionKind.FORWARD, micro_batch, stage)
        if stage < num_stages - 1:
            yield _Work(kind, micro_batch, stage + 1)
    if kind is ActionKind.WEIGHT:
        yield _Work(ActionKind.INPUT, micro_batch, stage)


class _Desk:
    """A rank's slots: which of them are taken, and how many chunks' activations are held in each."""

    def __init__(self, planned: list[tuple[ActionKind, int]], num_slots: int, cap: int, release: ActionKind) -> None:
        self._cap = cap
        self._release = release
        self._is_taken = bytearray(num_slots)
        import numpy as np  # noqa: PLC0415 # takes long to load, and only this needs it of all that makes schedules

        changes = np.zeros(num_slots + 1, dtype=np.int32)
        for kind, slot in planned:
            changes[slot] += kind is ActionKind.FORWARD
            changes[slot + 1] -= kind is release
        self._held = changes.cumsum()

    def take(self, kind: ActionKind, earliest: int, planned: int) -> int:
        """Take the first empty slot from `earliest` to the planned one that leaves memory below the cap."""
        first = self._first_with_memory(earliest, planned) if kind is ActionKind.FORWARD else earliest
        empty = self._is_taken.find(0, first, planned)
        slot = empty if empty >= 0 else planned
        self._is_taken[slot] = True
        if kind is ActionKind.FORWARD:
            self._held[slot:planned] += 1
        elif kind is self._release:
            self._held[slot + 1 : planned + 1] -= 1
        return slot

    def _first_with_memory(self, earliest: int, planned: int) -> int:
        """Return the first slot from which on, up to the planned one, one more activation can be held."""
        full = (self._held[earliest:planned] >= self._cap).nonzero()[0]
        return earliest + int(full[-1]) + 1 if len(full) else earliest


def _filled(route: Route, orders: list[_Order], cap: int) -> list[list[Action]]:
    """Play the orders in unit slots, with weight gradients where a rank waits for work, or for room.

    Room comes: where an order has a forward, the forwards before it without their input gradients
    are fewer than `cap`.
    """
    hands = [_Hand(order, cap) for order in orders]
    chunk_of = [route[:stage].count(rank) for stage, rank in enumerate(route)]
    done: set[_Work] = set()
    while any(hand.has_more for hand in hands):
        done.update([work for hand in hands if (work := hand.next(done, len(route))) is not None])
    return [[Action(kind, k, chunk_of[stage]) for kind, k, stage in hand.played] for hand in hands]


class _Hand:
    """A rank that plays its order, and fills its waits with weight gradients."""

    def __init__(self, order: _Order, cap: int) -> None:
        self.played: _Order = []
        self._order = deque(order)
        self._room = cap
        self._weights: deque[_Work] = deque()  # gradients that can be computed

    @property
    def has_more(self) -> bool:
        return bool(self._order or self._weights)

    def next(self, done: set[_Work], num_stages: int) -> _Work | None:
        """Play one slot, after what `done` has; give what was played."""
        work = self._chosen(done, num_stages)
        if work is not None:
            self.played.append(work)
        return work

    def _chosen(self, done: set[_Work], num_stages: int) -> _Work | None:
        if self._order and self._can_run(self._order[0], done, num_stages):
            work = self._order.popleft()
            if work.kind is ActionKind.FORWARD:
                self._room -= 1
            else:
                self._weights.append(work._replace(kind=ActionKind.WEIGHT))
            return work
        if self._weights:
            self._room += 1
            return self._weights.popleft()
        return None

    def _can_run(self, work: _Work, done: set[_Work], num_stages: int) -> bool:
        has_room = self._room > 0 or work.kind is not ActionKind.FORWARD
        return has_room and all(need in done for need in _needs(work, num_stages))
