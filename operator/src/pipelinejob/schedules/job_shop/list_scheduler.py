"""The list scheduler: each rank, whenever it is free, does what comes first by priority, within its memory.

One pass is short-sighted: it fills the pipeline well and empties it badly. So passes go **back and
forth**: a pass over the mirrored shop takes its priorities from the pass before it, last things
first, and keeps what was good at that end while it mends the other (forward-backward improvement,
as known for scheduling with scarce resources: Li and Willis 1992).
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipelinejob.schedules.actions import ActionKind
from pipelinejob.schedules.deadlock import RECEIVES_AHEAD
from pipelinejob.schedules.job_shop.job_shop import KINDS, JobShop, Orders, in_line_order
from pipelinejob.schedules.timetable import NEVER

_TINY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How a rank chooses between a job at hand and one of higher priority that is on its way.

    It begins the one at hand if that ends before the other's arrival, or after it by at most this
    share of its own length: 0 is never late, 1 never waits.
    """

    forward: float = 0.0
    input: float = 0.0
    weight: float = 0.0

    def of(self, kind: ActionKind) -> float:
        """Return the share for a job of a kind."""
        return (self.forward, self.input, self.weight)[KINDS.index(kind)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSeries:
    """The parameters of a series of passes.

    The first takes its priorities from `in_flow`, each later one from the pass before it. `forth`
    is the patience of those over the shop, `back` of those over the mirrored one, in which weight
    gradients come `weights_ahead` micro-batches earlier (later in the step) than in the pass
    before. `sends_ahead`: how many messages ahead of its receiver a rank may be; above
    RECEIVES_AHEAD, ranks may wait for each other to send, as `validate` would find.
    """

    weights_behind: float = 0.0
    inputs_first: bool = False
    forth: Patience = Patience()
    back: Patience = Patience()
    weights_ahead: float = 0.0
    num_passes: int = 5
    sends_ahead: float = RECEIVES_AHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The result of one pass."""

    orders: Orders
    started: list[float]  # of each job
    makespan_s: float


def passes(shop: JobShop, all_series: Iterable[PassSeries], *, end_as_begun: bool = False) -> Iterator[Pass]:
    """Make the passes of all series; what one shares with an earlier one is made once.

    With `end_as_begun` ranks need not be done together, but as long after each other as they
    begin: the longest span of a rank counts, not the makespan.
    """
    mirrored = shop.mirrored()
    firsts: dict[PassSeries, Pass] = {}
    for series in all_series:
        key = replace(series, back=Patience(), weights_ahead=0.0, num_passes=1)
        if key not in firsts:
            priority = in_flow(shop, weights_behind=series.weights_behind, inputs_first=series.inputs_first)
            firsts[key] = list_schedule(shop, priority, series.forth, sends_ahead=series.sends_ahead)
            yield firsts[key]
        last = firsts[key]
        for number in range(1, series.num_passes):
            is_back = number % 2 == 1
            last = (
                _back(shop, mirrored, last, series, end_as_begun=end_as_begun)
                if is_back
                else _forth(shop, last, series)
            )
            yield last


def _forth(shop: JobShop, last: Pass, series: PassSeries) -> Pass:
    return list_schedule(shop, last.started, series.forth, sends_ahead=series.sends_ahead)


def _back(shop: JobShop, mirrored: JobShop, last: Pass, series: PassSeries, *, end_as_begun: bool) -> Pass:
    ahead_s = series.weights_ahead * pace(shop)
    priority = [
        -last.started[line.first + line.size - 1 - position]
        - line.seconds
        - (ahead_s if line.kind is ActionKind.WEIGHT else 0.0)
        for line in shop.lines
        for position in range(line.size)
    ]
    began = [last.started[order[0]] if order else 0.0 for order in last.orders]
    begin_s = [max(began) - each for each in began] if end_as_begun else None
    back = list_schedule(mirrored, priority, series.back, begin_s, sends_ahead=series.sends_ahead)
    orders = shop.mirror(back.orders)
    started = shop.play(orders)
    assert started is not None, "what can be played from its end can be played to its end"
    return Pass(orders=orders, started=started, makespan_s=shop.makespan(started))


def list_schedule(
    shop: JobShop,
    priority: Sequence[float],
    patience: Patience,
    begin_s: Sequence[float] | None = None,
    *,
    sends_ahead: float = RECEIVES_AHEAD,
) -> Pass:
    """Schedule jobs in time: each free rank does the job with the least `priority`.

    Ranks begin at `begin_s`.

    A job that takes memory is begun only if the oldest unfinished micro-batch can still be
    finished on the rank, so that ranks never wait for each other's memory; room for one
    micro-batch must be on every rank. A job that sends is begun only if at most `sends_ahead`
    messages are then on their way to its receiver; up to RECEIVES_AHEAD, ranks never wait for each
    other to send.
    """
    return _Clock(shop, patience, begin_s, sends_ahead).run(priority)


class _Clock:
    """Ranks and lines at a moment; moments come in order, so that what is on its way is known."""

    def __init__(self, shop: JobShop, patience: Patience, begin_s: Sequence[float] | None, ahead: float) -> None:
        self._shop = shop
        self._ahead = ahead
        self._done = [0] * len(shop.lines)
        self._ready = [NEVER if source >= 0 else 0.0 for source in shop.source]
        self._free = list(begin_s or [0.0] * shop.num_ranks)
        self._capacity = list(shop.capacity)
        self._link_free = [0.0] * shop.num_links
        self._moments = [(free, rank) for rank, free in enumerate(self._free)]
        heapq.heapify(self._moments)
        self._first = [line.first for line in shop.lines]
        self._size = [line.size for line in shop.lines]
        self._after = [-1 if line.after is None else line.after for line in shop.lines]
        self._sends_to = [-1 if line.link is None or line.feeds is None else line.feeds for line in shop.lines]
        self._holds = [line.holds for line in shop.lines]
        self._seconds = [line.seconds for line in shop.lines]
        self._late = [line.seconds * patience.of(line.kind) + _TINY * line.seconds for line in shop.lines]
        self._most = [_whole_need(shop, rank) for rank in range(shop.num_ranks)]
        self._orders: Orders = [[] for _ in range(shop.num_ranks)]
        self._started = [0.0] * shop.num_jobs

    def run(self, priority: Sequence[float]) -> Pass:
        while self._moments:
            now, rank = heapq.heappop(self._moments)
            if self._free[rank] <= now:
                line = self._choice(rank, now, priority)
                if line >= 0:
                    self._begin(rank, line, now)
        assert all(done == size for done, size in zip(self._done, self._size, strict=True)), "nothing waits for ever"
        return Pass(orders=self._orders, started=self._started, makespan_s=max(self._free))

    def _choice(self, rank: int, now: float, priority: Sequence[float]) -> int:
        """Choose the line whose next job a rank begins; -1 where it waits."""
        done, size, after, first, ready = self._done, self._size, self._after, self._first, self._ready
        plenty = self._capacity[rank] - 1.0 >= self._most[rank]
        offers = []
        for line in self._shop.of_rank[rank]:
            position = done[line]
            if position == size[line] or (after[line] >= 0 and done[after[line]] <= position):
                continue
            job = first[line] + position
            at = ready[job]
            if at == NEVER or (not plenty and self._holds[line] > 0 and not self._has_room(rank, line)):
                continue
            receiver = self._sends_to[line]
            if receiver >= 0 and position >= done[receiver] + self._ahead:
                continue
            offers.append((priority[job], at, line))
        offers.sort()
        arrival = NEVER
        for _, at, line in offers:
            if at > now:
                arrival = min(arrival, at)
            elif now + self._seconds[line] - arrival <= self._late[line]:
                return line
        return -1

    def _begin(self, rank: int, line: int, now: float) -> None:
        job = self._first[line] + self._done[line]
        self._done[line] += 1
        self._started[job] = now
        end = now + self._seconds[line]
        self._free[rank] = end
        self._capacity[rank] -= self._holds[line]
        self._orders[rank].append(job)
        heapq.heappush(self._moments, (end, rank))
        sender = self._shop.fed_by[line]
        if sender is not None:
            heapq.heappush(self._moments, (now, self._shop.lines[sender].place.rank))
        receiver = self._shop.target[job]
        if receiver < 0:
            return
        sent = self._shop.lines[line]
        if sent.link is None:
            self._ready[receiver] = end
            return
        leaves = max(end, self._link_free[sent.link]) + sent.message_s
        self._link_free[sent.link] = leaves
        # Who does a part ahead could have begun before this was known to come; the clock does not
        # go back for it.
        self._ready[receiver] = arrival = max(now, leaves + sent.latency_s)
        heapq.heappush(self._moments, (arrival, self._shop.rank_of[receiver]))

    def _has_room(self, rank: int, line: int) -> bool:
        """Return whether a job may take memory: the oldest micro-batch that still needs some must keep enough."""
        left = self._capacity[rank] - self._holds[line] + _TINY
        if left < 0:
            return False
        if left >= self._most[rank]:
            return True
        lines, done = self._shop.lines, self._done
        takers = [t for t in self._shop.of_rank[rank] if self._holds[t] > 0 and done[t] < self._size[t]]
        oldest = min((done[taker], lines[taker].route) for taker in takers)
        if (done[line], lines[line].route) == oldest:
            return True
        position, route = oldest
        return left >= sum(self._holds[t] for t in takers if lines[t].route == route and done[t] <= position)


def _whole_need(shop: JobShop, rank: int) -> float:
    """Return the most memory that one micro-batch needs on a rank, over all routes."""
    routes = {line.route for line in shop.lines}
    lines = [shop.lines[number] for number in shop.of_rank[rank]]
    return max(sum(line.holds for line in lines if line.route == route and line.holds > 0) for route in routes)


def in_flow(shop: JobShop, *, weights_behind: float = 0.0, inputs_first: bool = True) -> list[float]:
    """Return each job's start, as its priority, if micro-batches followed each other at the busiest rank's pace.

    `weights_behind`: how many micro-batches later weight gradients come. `inputs_first`: input
    gradients before all else, whatever their time.
    """
    pace_s = pace(shop)
    starts = [0.0] * len(shop.lines)
    for number in in_line_order(shop):
        line = shop.lines[number]
        end = starts[number] + line.seconds
        if line.feeds is not None:
            starts[line.feeds] = max(starts[line.feeds], end + line.message_s + line.latency_s)
        for other, follower in enumerate(shop.lines):
            if follower.after == number:
                starts[other] = max(starts[other], end)
    shift = {ActionKind.WEIGHT: weights_behind * pace_s, ActionKind.INPUT: -shop.num_jobs * pace_s * inputs_first}
    return [
        start + shift.get(line.kind, 0.0) + position * pace_s
        for line, start in zip(shop.lines, starts, strict=True)
        for position in range(line.size)
    ]


def pace(shop: JobShop) -> float:
    """Return the seconds of one micro-batch on the busiest rank."""
    return max(sum(shop.lines[number].seconds for number in lines) for lines in shop.of_rank)
