"""What no schedule can be shorter than, given its routes, costs and memory.

Three kinds of limits are put together. *Heads*: when each job can start at the earliest, by what
it waits for, by the jobs of its line before it, and by the memory that they must have let go of.
*Tails*: what must follow it at the least, which is the head in the mirrored shop. And each rank
does one thing at a time: with these heads and tails its jobs take at least as long as if they
could be interrupted at will, most urgent tail first (Jackson's preemptive schedule, as Carlier
1982 bounds job shops).
"""

import heapq
from collections.abc import Sequence

from pipelinejob.schedules.actions import Route, ScheduleError, folded, looped, straight
from pipelinejob.schedules.job_shop.job_shop import JobShop, Line, in_line_order, job_shop_of
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.timetable import NEVER

Routing = tuple[tuple[Route, ...], tuple[int, ...]]  # routes, and the one that each micro-batch takes


def lower_bound_s(setting: Setting, *, copies: int = 1) -> float:
    """Return the lower bound of every schedule on the routings that `auto` looks at, within the setting's caps.

    With two `copies` each stage may stand on two ranks, each of which needs its weights.
    """
    return min(least_makespan_s(job_shop_for(routing, setting)) for routing in routings_of(setting, copies=copies))


def routings_of(setting: Setting, *, copies: int) -> tuple[Routing, ...]:
    """Return the routings in which each stage stands on at most so many ranks."""
    return one_copy_routings(setting) if copies == 1 else (*one_copy_routings(setting), *two_copy_routings(setting))


def one_copy_routings(setting: Setting) -> tuple[Routing, ...]:
    """Return the routings in which each stage stands once: straight, a V, a loop, or with the chunks asked for."""
    p, v = setting.num_ranks, setting.num_chunks
    routes = [straight(p)] if v in {None, 1} else []
    if v != 1:
        routes += [folded(p, (v or 2) - 1), looped(p, v or 2)]
    return tuple(
        routing for route in routes if exists(routing := ((route,), (0,) * setting.num_micro_batches), setting)
    )


def two_copy_routings(setting: Setting) -> tuple[Routing, ...]:
    """Return the routing from both ends at once, with each stage on two ranks.

    None for an odd number of ranks.
    """
    if setting.num_ranks % 2 or setting.num_chunks not in {None, 1}:
        return ()
    there = straight(setting.num_ranks)
    routing = (there, there[::-1]), tuple(k % 2 for k in range(setting.num_micro_batches))
    return (routing,) if exists(routing, setting) else ()


def exists(routing: Routing, setting: Setting) -> bool:
    """Return whether a setting has costs for all stages of a routing."""
    try:
        setting.costs_of(*routing[0])
    except ScheduleError:  # fewer layers than stages
        return False
    return True


def job_shop_for(routing: Routing, setting: Setting) -> JobShop:
    """Lay out a setting's micro-batches along a routing."""
    routes, route_of = routing
    return job_shop_of(routes, route_of, setting.costs_of(*routes), caps=setting.activation_caps)


def least_makespan_s(shop: JobShop) -> float:
    """Return what no orders of a shop's jobs can be shorter than."""
    starts, rests = heads(shop), heads(shop.mirrored())
    bound = 0.0
    for lines in shop.of_rank:
        jobs = []
        for number in lines:
            line = shop.lines[number]
            mirrored = rests[number][::-1]
            jobs += [(head, line.seconds, tail) for head, tail in zip(starts[number], mirrored, strict=True)]
        bound = max(bound, preemptive_makespan(jobs))
    return bound


def preemptive_makespan(jobs: Sequence[tuple[float, float, float]]) -> float:
    """Return how long one machine takes for (head, seconds, tail) jobs with preemption, longest tail first."""
    coming = sorted(jobs, reverse=True)
    waiting: list[tuple[float, float]] = []  # (-tail, seconds left)
    now = end = 0.0
    while coming or waiting:
        if not waiting:
            now = max(now, coming[-1][0])
        while coming and coming[-1][0] <= now:
            _, seconds, tail = coming.pop()
            heapq.heappush(waiting, (-tail, seconds))
        tail, left = heapq.heappop(waiting)
        until = coming[-1][0] if coming else NEVER
        if now + left <= until:
            now += left
            end = max(end, now - tail)
        else:
            heapq.heappush(waiting, (tail, left - (until - now)))
            now = until
    return end


def heads(shop: JobShop) -> list[list[float]]:
    """Return the earliest start of each line's jobs, the first of a line being the first that is done."""
    return _Heads(shop).run()


class _Heads:
    """Goes through the micro-batches in order, and for each through the lines in the order in which they wait.

    The n-th job of a line can start when the n-th ones of the lines before it have ended: they
    need not be of the same micro-batch, but so many must have been done.
    """

    def __init__(self, shop: JobShop) -> None:
        self._lines = shop.lines
        self._order = in_line_order(shop)
        self._starts: list[list[float]] = [[] for _ in shop.lines]
        self._fed_by = shop.fed_by
        self._capacity = shop.capacity
        self._chunks: dict[
            tuple[int, int], list[tuple[int, int]]
        ] = {}  # by rank and route, each chunk's taker and giver
        takers, givers = (
            {_key(line): n for n, line in enumerate(shop.lines) if line.holds * sign > 0} for sign in (1, -1)
        )
        for key in sorted(takers):
            self._chunks.setdefault(key[:2], []).append((takers[key], givers[key]))

    def run(self) -> list[list[float]]:
        for position in range(max(line.size for line in self._lines)):
            for number in self._order:
                if position < self._lines[number].size:
                    self._starts[number].append(max(self._waits(number, position)))
        return self._starts

    def _waits(self, number: int, position: int) -> list[float]:
        line = self._lines[number]
        waits = [0.0]
        if position > 0:
            waits.append(self._end(number, position - 1))
        if line.after is not None:
            waits.append(self._end(line.after, position))
        sender = self._fed_by[number]
        if sender is not None:
            sent = self._lines[sender]
            waits.append(self._end(sender, position) + sent.message_s + sent.latency_s)
        if line.holds > 0 and self._capacity[line.place.rank] < NEVER:
            waits += self._memory(number, position)
        return waits

    def _end(self, number: int, position: int) -> float:
        return self._starts[number][position] + self._lines[number].seconds

    def _memory(self, number: int, position: int) -> list[float]:
        """Return when memory can be free: with capacity R, once the job R places earlier has released its own.

        Where a rank holds v > 1 chunks, R micro-batches that all still need their last chunk would
        wait for each other for ever. So the last taker is at most R-1 jobs behind the first one,
        and when that starts, so many of all have started that of one chunk at least a v-th must
        have ended what is more than R.
        """
        line = self._lines[number]
        capacity = int(self._capacity[line.place.rank] + 1e-9)
        chunks = self._chunks[line.place.rank, line.route]
        giver = next(gives for takes, gives in chunks if takes == number)
        waits = [self._end(giver, position - capacity)] if position >= capacity else []
        if len(chunks) > 1 and number == chunks[0][0]:
            behind = position - capacity + 1
            if behind >= 0:
                waits.append(self._end(chunks[-1][0], behind))
            started = position + 1 + (len(chunks) - 1) * max(0, behind + 1)
            ended = -((capacity - started) // len(chunks))
            if ended > 0:
                waits.append(min(self._end(gives, ended - 1) for _, gives in chunks))
        return waits


def _key(line: Line) -> tuple[int, int, int]:
    return line.place.rank, line.route, line.place.chunk
