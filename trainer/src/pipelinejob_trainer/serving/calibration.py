"""What passes cost this stage, measured before it serves.

By that the chunks of a prompt are made equal, and the times of answers predicted.
"""

import time
from collections.abc import Callable

import torch

from pipelinejob.serving.chunks import Late, PassCost, explained
from pipelinejob.serving.passes import Row
from pipelinejob.serving.scheduler import Limits
from pipelinejob_trainer.serving.later_stage import Compute

_LATE_CHUNKS = 8  # before the token that shows what the cache costs
_FEW = (2, 4, 8)  # sequences of a pass, between one and as many as it may have
_TIMES = 3  # of which the shortest counts: what is longer was disturbed


def measured_cost(
    compute: Compute,
    limits: Limits,
    *,
    width: int | None,
    longest: int,
    clock: Callable[[], float] = time.perf_counter,
) -> PassCost:
    """Measure some kinds of passes on the stage's own cache, which must be idle.

    `width` is that of the hidden state that the stage receives; None: it receives tokens. Passes
    are no longer than `longest` positions and than the cache. Where stages share processors, and
    measure at the same time, `clock` is this thread's processor time: what the others do in it is
    not the stage's own.
    """
    room = min(longest, limits.cache_tokens)
    chunk = max(2, min(limits.chunk_tokens, room // 2))
    rows = max(2, min(limits.group_size, limits.num_blocks))

    def seconds(*, rows: int, past: int, new: int) -> float:
        return _seconds(compute, limits, width, clock, rows=rows, past=past, new=new)

    one, many = seconds(rows=1, past=0, new=1), seconds(rows=rows, past=0, new=1)
    first, second = seconds(rows=1, past=0, new=chunk), seconds(rows=1, past=chunk, new=chunk)
    past = max(1, min(room - 1, _LATE_CHUNKS * chunk))
    late = Late(past=past, seconds=seconds(rows=1, past=past, new=1))
    few = {number: seconds(rows=number, past=0, new=1) for number in _FEW if number < rows}
    return explained(one, many, first, second, rows=rows, chunk=chunk, late=late, few=few)


def _seconds(
    compute: Compute,
    limits: Limits,
    width: int | None,
    clock: Callable[[], float],
    *,
    rows: int,
    past: int,
    new: int,
) -> float:
    needed = -(-(past + new) // limits.block)
    asked = tuple(
        Row(
            sequence=number,
            tokens=(0,) * new,
            start=past,
            blocks=tuple((number * needed + place) % limits.num_blocks for place in range(needed)),
        )
        for number in range(rows)
    )
    received = None if width is None else torch.zeros(rows, new, width)
    taken = []
    for _ in range(1 + _TIMES):
        begun = clock()
        compute.run(asked, received)
        taken.append(clock() - begun)
    return min(taken[1:])
