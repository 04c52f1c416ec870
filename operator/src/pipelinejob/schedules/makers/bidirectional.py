"""Chimera and DualPipe: two routes over the same stages, so that micro-batches enter the pipeline at both ends.

Each stage stands on two ranks, i and p-1-i, each with a copy of its weights: twice the memory for
weights, and gradients are summed over both copies. p must be even.
"""

from pipelinejob.schedules.actions import Action, ActionKind, RankActions, Route, Schedule, ScheduleError, straight
from pipelinejob.schedules.costs import Costs
from pipelinejob.schedules.job_shop.job_shop import JobShop, job_shop_of
from pipelinejob.schedules.job_shop.list_scheduler import Patience, list_schedule
from pipelinejob.schedules.job_shop.orders import schedule_of
from pipelinejob.schedules.makers.v_shaped import dualpipe_v
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.timetable import NEVER


def chimera(setting: Setting) -> Schedule:
    """Run 1F1B from both ends at once: Chimera (Li and Hoefler 2021, SC, arXiv 2107.06925).

        rank 0  F0 F2 .. F1 B1 F3 B3 B0 .. B2     route 0: 0 1 2 3, micro-batches 0 2
        rank 1  .. F0 F1 F2 F3 B1 B0 B3 B2 ..     route 1: 3 2 1 0, micro-batches 1 3
        rank 2  .. F1 F0 F3 F2 B0 B1 B2 B3 ..
        rank 3  F1 F3 .. F0 B0 F2 B2 B1 .. B3

    bubble = (p-2)/(2m+p-2) where a backward is as long as a forward, for any m that is a multiple
    of p; where it is twice as long, (p-2)/(3m/2+p-2) for m = p. Rank i holds p/2+1+i of p
    micro-batches, at most p. Micro-batches take the routes by turns, and a rank prefers the
    backward of the oldest micro-batch to any forward.
    """
    p, m = setting.num_ranks, setting.num_micro_batches
    routes, route_of = _routes(p, "Chimera", instead="Hanayo"), tuple(k % 2 for k in range(m))
    costs = Costs(forward_s=(1.0,) * p, input_s=(1.0,) * p, weight_s=(0.0,) * p)  # a backward as long as a forward
    shop = job_shop_of(routes, route_of, costs, caps=[p] * p)
    made = list_schedule(shop, _oldest_backward_first(shop, routes), _NEVER_IDLE, sends_ahead=NEVER)
    inputs = (job for job, line in enumerate(shop.line_of) if shop.lines[line].kind is ActionKind.INPUT)
    return schedule_of(shop, made.orders, routes, route_of, whole=frozenset(inputs))


_NEVER_IDLE = Patience(forward=1.0, input=1.0, weight=1.0)
_RANKING = {ActionKind.WEIGHT: 0, ActionKind.INPUT: 1, ActionKind.FORWARD: 2}  # the second half of a backward at once


def _oldest_backward_first(shop: JobShop, routes: tuple[Route, ...]) -> list[float]:
    """Return each job's priority: backwards first, then the older micro-batch, then the later stage."""
    num_stages, num_micro_batches = len(routes[0]), len(routes) * max(line.size for line in shop.lines)
    return [
        (_RANKING[line.kind] * num_micro_batches + len(routes) * position + line.route) * num_stages
        - routes[line.route].index(line.place.rank)
        for line in shop.lines
        for position in range(line.size)
    ]


def dualpipe(setting: Setting) -> Schedule:
    """Pair forwards of one direction with backwards of the other: DualPipe (DeepSeek-V3, arXiv 2412.19437, fig. 5).

    It is DualPipeV on half of the ranks with half of the micro-batches, cut at its fold: the ranks
    that a micro-batch would come back on are ranks of their own, to which another one comes from
    the other end. The first half of the micro-batches enter at rank 0.

    Weight gradients are put off at both ends only. bubble = (p/2-1)(F&B + B - 3W), B being a full
    backward and F&B a forward and a backward that overlap; a pair whose parts run one after the
    other and need not wait for each other's input has (p/2-1)(F+I-W), less by (p/2-1)I than the
    formula with F&B = F+B. Every rank holds p+1 micro-batches. So for even m from 2p on; an odd
    one is the next even one less its last micro-batch.
    """
    p, m = setting.num_ranks, setting.num_micro_batches
    routes = _routes(p, "DualPipe", instead="DualPipeV")
    num_down = (m + 1) // 2
    half = dualpipe_v(p // 2, num_down)
    downwards = [_cut(actions, (0, num_down), m) for actions in half.ranks]
    upwards = [_cut(actions, (num_down, 0), m) for actions in half.ranks]
    return Schedule(
        routes=routes, route_of=(0,) * num_down + (1,) * (m - num_down), ranks=(*downwards, *reversed(upwards))
    )


def _cut(actions: RankActions, first_of_chunk: tuple[int, int], num_micro_batches: int) -> RankActions:
    """Make each chunk a direction with micro-batches of its own.

    The last one upwards may be missing.
    """
    renamed = (Action(a.kind, first_of_chunk[a.chunk] + a.micro_batch) for a in actions)
    return tuple(action for action in renamed if action.micro_batch < num_micro_batches)


def _routes(num_ranks: int, name: str, *, instead: str) -> tuple[Route, Route]:
    if num_ranks % 2:
        raise ScheduleError(
            f"{name} runs from both ends and needs an even number of ranks, not {num_ranks}; use"
            f" {num_ranks + 1}, or {instead}"
        )
    there = straight(num_ranks)
    return there, there[::-1]
