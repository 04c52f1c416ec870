"""torch.distributed.pipelining's CSV form of a schedule (torch 2.15), read and written.

A line is a rank, a cell an action: the stage, the kind, the micro-batch, as in `2F0`; a cell may
be empty. What torch adds to it in its second form (sends, receives, unsharding, reduction) follows
from the rest here and is passed over; a pair in one cell, `(0F1;3B0)OVERLAP_F_B`, is read as its
two parts, one after the other.
"""

import csv
import io
import re
from collections.abc import Iterator

from pipelinejob.schedules.actions import Action, ActionKind, Schedule, ScheduleError, one_route

_KINDS = {kind.value: kind for kind in ActionKind if kind is not ActionKind.UPDATE}
_ACTION = re.compile(r"([0-9]{1,5})([FBIW])([0-9]{1,7})")
_PASSED_OVER = re.compile(r"[0-9]+(?:(?:WAIT_)?SEND_[FB]|RECV_[FB]|UNSHARD|RESHARD|(?:WAIT_)?REDUCE_GRAD)[0-9]*")
_PAIR = re.compile(r"\(([^()]*)\)OVERLAP_F_B")

_StageAction = tuple[int, ActionKind, int]  # stage, kind, micro-batch


def write(schedule: Schedule) -> str:
    """Write torch's first form, computing alone.

    Raises ScheduleError for what torch has no words for: several routes, weight versions, forwards
    alone.
    """
    if len(schedule.routes) > 1:
        raise ScheduleError("torch's CSV knows one rank for each stage; this schedule has two, one for each direction")
    if schedule.is_asynchronous:
        raise ScheduleError("torch's CSV knows no updates within a step, nor weight versions")
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    for rank, actions in enumerate(schedule.ranks):
        writer.writerow(f"{schedule.stage_of(rank, a)}{a.kind}{a.micro_batch}" for a in actions)
    return rows.getvalue()


def read(text: str) -> Schedule:
    """Read either form; whether it can be played is for `validate` to say.

    Raises ScheduleError for what is no such form, naming the line.
    """
    ranks = [tuple(_cells(number, row)) for number, row in enumerate(csv.reader(io.StringIO(text)), start=1)]
    ranks = [actions for actions in ranks if actions]
    if not ranks:
        raise ScheduleError("no rank has a line; write one line of actions for each rank, as in 0F0,0B0")
    rank_of = _rank_of_stages(ranks)
    route = tuple(rank_of[stage] for stage in range(len(rank_of)))
    chunk_of = _chunks(route)
    num_micro_batches = 1 + max(micro_batch for actions in ranks for _, _, micro_batch in actions)
    lists = [[Action(kind, k, chunk_of[stage]) for stage, kind, k in actions] for actions in ranks]
    return one_route(route, lists, num_micro_batches)


def _cells(number: int, row: list[str]) -> Iterator[_StageAction]:
    for cell in row:
        pair = _PAIR.fullmatch(cell.strip())
        for word in pair[1].split(";") if pair else [cell]:
            yield from _action(number, word.strip())


def _action(number: int, word: str) -> Iterator[_StageAction]:
    if not word or _PASSED_OVER.fullmatch(word):
        return
    match = _ACTION.fullmatch(word)
    if match is None:
        raise ScheduleError(f"line {number}: {word!r} is no action of torch's; write stage, F, B, I or W, micro-batch")
    stage, kind, micro_batch = match.groups()
    yield int(stage), _KINDS[kind], int(micro_batch)


def _rank_of_stages(ranks: list[tuple[_StageAction, ...]]) -> dict[int, int]:
    rank_of: dict[int, int] = {}
    for rank, actions in enumerate(ranks):
        for stage, _, _ in actions:
            if rank_of.setdefault(stage, rank) != rank:
                raise ScheduleError(f"line {rank + 1}: stage {stage} stands on line {rank_of[stage] + 1} already")
    missing = sorted(set(range(max(rank_of) + 1)) - set(rank_of))
    if missing:
        raise ScheduleError(f"stage {missing[0]} stands on no line; stages count from 0 without a gap")
    return rank_of


def _chunks(route: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunk that each stage is on its rank."""
    return tuple(route[:stage].count(rank) for stage, rank in enumerate(route))
