"""What schedules are held against: torch's own lists, a clock for forwards in pairs with backwards, a sum's order."""

import csv
import io
from itertools import pairwise
from typing import NamedTuple

import pytest

from pipelinejob.schedules import torch_csv
from pipelinejob.schedules.actions import GIVES_GRADIENT, Action, ActionKind, Schedule


def torchs_schedule(name, num_ranks, num_micro_batches, num_chunks):
    """Return the list that torch's class `name` makes; skip the test where torch is not there."""
    visualizer = pytest.importorskip("torch.distributed.pipelining._schedule_visualizer")
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    order = visualizer.get_schedule_ops(
        getattr(schedules, name), num_ranks, num_micro_batches, num_stages_per_rank=num_chunks
    )
    rows = io.StringIO()
    csv.writer(rows).writerows([["" if action is None else action for action in row] for row in order])
    return torch_csv.read(rows.getvalue())


def makespan_in_pairs(schedule: Schedule, *, forward_s: float, input_s: float, weight_s: float) -> float:
    """Return the makespan where a forward with a full backward right behind it is one action that cannot be parted.

    So count DualPipe's authors. Seconds are an action's.
    """
    kinds = (ActionKind.FORWARD, ActionKind.INPUT, ActionKind.WEIGHT, ActionKind.BACKWARD)
    seconds = dict(zip(kinds, (forward_s, input_s, weight_s, input_s + weight_s), strict=True))
    producers, ends, free = Producers(schedule), {}, [0.0] * schedule.num_ranks
    waiting = [_in_pairs(actions) for actions in schedule.ranks]
    while any(waiting):
        num_ended = len(ends)
        for rank, groups in enumerate(waiting):
            while groups:
                own = {(rank, action) for action in groups[0]}
                wanted = {need for action in groups[0] for need in needs(schedule, rank, action, producers)} - own
                if not wanted <= ends.keys():
                    break
                start = max([free[rank], *(ends[need] for need in wanted)])
                free[rank] = start + sum(seconds[action.kind] for action in groups[0])
                ends |= dict.fromkeys(((rank, action) for action in groups.pop(0)), free[rank])
        assert len(ends) > num_ended, "pairs wait for each other"
    return max(free)


def _in_pairs(actions):
    groups = [[actions[0]]]
    for before, action in pairwise(actions):
        if (before.kind, action.kind) == (ActionKind.FORWARD, ActionKind.BACKWARD):
            groups[-1].append(action)
        else:
            groups.append([action])
    return groups


def adds_up_in_order(schedule: Schedule) -> bool:
    """Tell whether each stage's gradients add up on one rank, micro-batch after micro-batch."""
    sums: dict[tuple[int, int], list[int]] = {}
    for rank, actions in enumerate(schedule.ranks):
        for action in actions:
            if action.kind in {ActionKind.BACKWARD, ActionKind.WEIGHT}:
                sums.setdefault((rank, action.chunk), []).append(action.micro_batch)
    return len(schedule.routes) == 1 and all(added == sorted(added) for added in sums.values())


class Need(NamedTuple):
    """An action of a rank that another one waits for."""

    rank: int
    action: Action


def needs(schedule: Schedule, rank: int, action: Action, producers: "Producers") -> tuple[Need, ...]:
    """Return what must have ended before an action can start, its place in its rank's list aside.

    A forward needs the previous stage's forward; a gradient its own forward and the next stage's
    gradient; a weight gradient its own input gradient. An update needs nothing but its place.
    """
    if action.kind is ActionKind.UPDATE:
        return ()
    stage, micro_batch = schedule.stage_of(rank, action), action.micro_batch
    if action.kind is ActionKind.FORWARD:
        return (producers.forward(micro_batch, stage - 1),) if stage > 0 else ()
    if action.kind is ActionKind.WEIGHT:
        return (producers.gradient(micro_batch, stage),)
    own = producers.forward(micro_batch, stage)
    return (own, producers.gradient(micro_batch, stage + 1)) if stage < schedule.num_stages - 1 else (own,)


class Producers:
    """Finds the action that makes a micro-batch's activation, or its gradient, at a stage."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._forwards: dict[tuple[int, int], Need] = {}
        self._gradients: dict[tuple[int, int], Need] = {}
        for rank, actions in enumerate(schedule.ranks):
            for action in actions:
                if action.kind is ActionKind.FORWARD:
                    self._forwards[action.micro_batch, schedule.stage_of(rank, action)] = Need(rank, action)
                elif action.kind in GIVES_GRADIENT:
                    self._gradients[action.micro_batch, schedule.stage_of(rank, action)] = Need(rank, action)

    def forward(self, micro_batch: int, stage: int) -> Need:
        """Return the forward of a micro-batch at a stage; where no list has it, the one that is missing."""
        return self._forwards.get((micro_batch, stage)) or self._missing(ActionKind.FORWARD, micro_batch, stage)

    def gradient(self, micro_batch: int, stage: int) -> Need:
        """Return the B or I of a micro-batch at a stage; where no list has it, the B that is missing."""
        return self._gradients.get((micro_batch, stage)) or self._missing(ActionKind.BACKWARD, micro_batch, stage)

    def _missing(self, kind: ActionKind, micro_batch: int, stage: int) -> Need:
        rank, chunk = self._schedule.place_of(micro_batch, stage)
        return Need(rank, Action(kind, micro_batch, chunk))
