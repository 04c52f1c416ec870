"""What schedules are held against: torch's own lists, and a clock for forwards paired with backwards."""

import csv
import io
from itertools import pairwise

import pytest

from pipelinejob.schedules import torch_csv
from pipelinejob.schedules.actions import ActionKind, Producers, Schedule, needs


def torchs_schedule(name, num_ranks, num_micro_batches, num_chunks):
    """Give the list that torch's class `name` makes; skip the test where torch is not there."""
    visualizer = pytest.importorskip("torch.distributed.pipelining._schedule_visualizer")
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    order = visualizer.get_schedule_ops(
        getattr(schedules, name), num_ranks, num_micro_batches, num_stages_per_rank=num_chunks
    )
    rows = io.StringIO()
    csv.writer(rows).writerows([["" if action is None else action for action in row] for row in order])
    return torch_csv.read(rows.getvalue())


def makespan_in_pairs(schedule: Schedule, *, forward_s: float, input_s: float, weight_s: float) -> float:
    """Give the makespan where a forward with a full backward right behind it is one action that cannot be parted.

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
