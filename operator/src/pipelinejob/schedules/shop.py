"""A pipeline's step as a job shop: what searching for schedules works on, in flat arrays of numbers.

All micro-batches of a route are alike, so nothing is lost by taking them in order everywhere, and all that is left to
decide is how each rank merges its **lines**. A line is every action of one kind at one stage of a route, one for each
micro-batch; a **job** is one of them, as a number. A full backward counts as its two halves, one after the other, which
is never slower; `fused` makes it whole again where that costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from pipelinejob.schedules.actions import Action, ActionKind, Place, Route, Schedule
from pipelinejob.schedules.costs import Costs

KINDS = (ActionKind.FORWARD, ActionKind.INPUT, ActionKind.WEIGHT)
NEVER = float("inf")

Orders = list[list[int]]  # of each rank, its jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """All actions of one kind at one stage of a route.

    Its jobs are numbered `first` to `first + size - 1`, as the micro-batches are in order. Job n of the line comes
    after job n of the line `after` in the same rank's list, and sends to job n of the line `feeds`. `holds` is the
    change in activations of a chunk that a job makes: above zero, from its start on; below, from its end.
    """

    kind: ActionKind
    route: int
    place: Place
    seconds: float
    first: int
    size: int
    after: int | None
    feeds: int | None
    link: int | None  # None also where it hands on within its rank
    message_s: float
    latency_s: float
    holds: float


class Shop:
    """The lines of a step, and their jobs.

    `room` is how many activations of one chunk each rank may hold at once.
    """

    def __init__(self, lines: Sequence[Line], *, room: Sequence[float], num_links: int) -> None:
        self.lines = tuple(lines)
        self.room = tuple(room)
        self.num_links = num_links
        self.num_ranks = len(room)
        self.of_rank = tuple(
            tuple(number for number, line in enumerate(lines) if line.place.rank == rank)
            for rank in range(self.num_ranks)
        )
        self.num_jobs = sum(line.size for line in lines)
        self.line_of = [number for number, line in enumerate(lines) for _ in range(line.size)]
        self.rank_of = [lines[number].place.rank for number in self.line_of]
        self.seconds = [lines[number].seconds for number in self.line_of]
        self.target = [-1] * self.num_jobs
        self.waits = [False] * self.num_jobs  # for a message, or for a job of the same rank on another stage
        self.sender_of: list[int | None] = [None] * len(lines)  # the rank whose messages a line's jobs take
        for line in lines:
            if line.feeds is not None:
                first = lines[line.feeds].first
                self.target[line.first : line.first + line.size] = range(first, first + line.size)
                self.waits[first : first + line.size] = [True] * line.size
                self.sender_of[line.feeds] = None if line.link is None else line.place.rank

    def mirrored(self) -> "Shop":
        """Give the shop in which time runs backwards: jobs keep their numbers, and their lines run from last to first.

        What is played well from its end in this one is played well to its end in the other; links are shared out from
        the other side, which comes close but is not the same.
        """
        after: list[int | None] = [None] * len(self.lines)
        fed_by: list[int | None] = [None] * len(self.lines)
        for number, line in enumerate(self.lines):
            if line.after is not None:
                after[line.after] = number
            if line.feeds is not None:
                fed_by[line.feeds] = number
        lines = []
        for number, line in enumerate(self.lines):
            source = fed_by[number]
            sender = line if source is None else self.lines[source]
            lines.append(
                replace(
                    line,
                    after=after[number],
                    feeds=source,
                    link=None if source is None else sender.link,
                    message_s=0.0 if source is None else sender.message_s,
                    latency_s=0.0 if source is None else sender.latency_s,
                    holds=-line.holds,
                )
            )
        return Shop(lines, room=self.room, num_links=self.num_links)

    def mirror(self, orders: Orders) -> Orders:
        """Turn orders of this shop into those of the mirrored one, and back."""
        ends = [2 * line.first + line.size - 1 for line in self.lines]
        return [[ends[self.line_of[job]] - job for job in reversed(order)] for order in orders]

    def play(self, orders: Orders, seconds: Sequence[float] | None = None) -> list[float] | None:
        """Give each job's start, by the same rules as `simulate`; None where ranks wait for each other for ever."""
        seconds = self.seconds if seconds is None else seconds
        line_of, rank_of, target, lines = self.line_of, self.rank_of, self.target, self.lines
        links = [(line.link, line.message_s, line.latency_s) for line in lines]
        ready = [NEVER if waits else 0.0 for waits in self.waits]
        link_free = [0.0] * self.num_links
        started = [0.0] * self.num_jobs
        position, free = [0] * self.num_ranks, [0.0] * self.num_ranks
        awake = list(range(self.num_ranks))
        played = 0
        while awake:
            rank = awake.pop()
            order, at, now = orders[rank], position[rank], free[rank]
            played -= at
            while at < len(order):
                job = order[at]
                if ready[job] > now:
                    if ready[job] == NEVER:
                        break
                    now = ready[job]
                started[job] = now
                now += seconds[job]
                receiver = target[job]
                if receiver >= 0:
                    link, message_s, latency_s = links[line_of[job]]
                    if link is None:
                        ready[receiver] = now
                    else:
                        leaves = (max(link_free[link], now)) + message_s
                        link_free[link] = leaves
                        ready[receiver] = leaves + latency_s
                        other = rank_of[receiver]
                        if position[other] < len(orders[other]) and orders[other][position[other]] == receiver:
                            awake.append(other)
                at += 1
            position[rank], free[rank] = at, now
            played += at
        return started if played == self.num_jobs else None

    def makespan(self, started: Sequence[float]) -> float:
        """Give when the last job ends."""
        return max(map(float.__add__, started, self.seconds))


def shop_of(
    routes: tuple[Route, ...],
    route_of: Sequence[int],
    costs: Costs,
    *,
    caps: Sequence[float] | None = None,
    kept_for_weight: float = 1.0,
) -> Shop:
    """Lay out the lines of all micro-batches along their routes.

    `caps` bounds each rank's activations in shares of a micro-batch. `kept_for_weight` is the part of an activation
    that is still held between `I` and `W`: all of it by `peak_activations`.
    """
    num_ranks = max(routes[0]) + 1
    visits = [routes[0].count(rank) for rank in range(num_ranks)]
    room = [NEVER] * num_ranks if caps is None else [cap * v for cap, v in zip(caps, visits, strict=True)]
    layout = _Layout(routes, route_of, costs, kept_for_weight)
    return Shop(layout.lines(), room=room, num_links=len(layout.links))


class _Layout:
    """Numbers lines and links: of each route, the forwards of all stages, the input gradients, the weight gradients."""

    def __init__(self, routes: tuple[Route, ...], route_of: Sequence[int], costs: Costs, kept: float) -> None:
        self.links: dict[tuple[int, int], int] = {}
        self._routes = routes
        self._costs = costs
        self._num_stages = len(routes[0])
        self._sizes = [sum(taken == number for taken in route_of) for number in range(len(routes))]
        self._seconds = (costs.forward_s, costs.input_s, costs.weight_s)
        self._holds = (1.0, kept - 1.0, -kept)

    def lines(self) -> list[Line]:
        keys = [
            (route, kind, stage)
            for route in range(len(self._routes))
            for kind in range(len(KINDS))
            for stage in range(self._num_stages)
        ]
        firsts = [0, *accumulate(self._sizes[route] for route, _, _ in keys)]
        return [self._line(*key, first) for key, first in zip(keys, firsts[:-1], strict=True)]

    def _line(self, route: int, kind: int, stage: int, first: int) -> Line:
        ranks = self._routes[route]
        rank = ranks[stage]
        next_stage = stage + (1, -1, self._num_stages)[kind]
        feeds = 0 <= next_stage < self._num_stages
        crosses = feeds and ranks[next_stage] != rank
        ends = (rank, ranks[next_stage]) if crosses else (rank, rank)
        link = self._costs.between(*ends)
        return Line(
            kind=KINDS[kind],
            route=route,
            place=Place(rank, ranks[:stage].count(rank)),
            seconds=self._seconds[kind][stage] / (self._costs.speeds[rank] if self._costs.speeds else 1.0),
            first=first,
            size=self._sizes[route],
            after=self._number(route, kind - 1, stage) if kind else None,
            feeds=self._number(route, kind, next_stage) if feeds else None,
            link=self.links.setdefault(ends, len(self.links)) if crosses else None,
            message_s=link.message_s,
            latency_s=link.latency_s,
            holds=self._holds[kind],
        )

    def _number(self, route: int, kind: int, stage: int) -> int:
        return (route * len(KINDS) + kind) * self._num_stages + stage


def orders_of(shop: Shop, schedule: Schedule) -> Orders:
    """Read a schedule's merging of the shop's lines, which must be of the same routes."""
    numbers = {(line.kind, line.route, line.place): number for number, line in enumerate(shop.lines)}
    done = [0] * len(shop.lines)
    orders: Orders = []
    for rank, actions in enumerate(schedule.ranks):
        orders.append([])
        for action in actions:
            is_full = action.kind is ActionKind.BACKWARD
            for kind in (ActionKind.INPUT, ActionKind.WEIGHT) if is_full else (action.kind,):
                number = numbers[kind, schedule.route_of[action.micro_batch], Place(rank, action.chunk)]
                orders[rank].append(shop.lines[number].first + done[number])
                done[number] += 1
    return orders


def schedule_of(
    shop: Shop,
    orders: Orders,
    routes: tuple[Route, ...],
    route_of: Sequence[int],
    whole: frozenset[int] = frozenset(),
) -> Schedule:
    """Write orders down as a schedule; the input gradients in `whole`, with the weight gradients after them, as one."""
    micro_batches = [[k for k, taken in enumerate(route_of) if taken == route] for route in range(len(routes))]
    ranks = []
    for order in orders:
        actions = []
        for job in order:
            line = shop.lines[shop.line_of[job]]
            position = job - line.first
            if line.kind is ActionKind.WEIGHT and shop.lines[line.after or 0].first + position in whole:
                continue
            kind = ActionKind.BACKWARD if job in whole else line.kind
            actions.append(Action(kind, micro_batches[line.route][position], line.place.chunk))
        ranks.append(tuple(actions))
    return Schedule(routes=routes, route_of=tuple(route_of), ranks=tuple(ranks))


def fused(shop: Shop, orders: Orders) -> frozenset[int]:
    """Choose input gradients that can be one full backward with the weight gradients just after them.

    The message of a full backward leaves at its end. We take all pairs at once, and halve what makes the step longer.
    """
    started = shop.play(orders)
    assert started is not None, "orders that are written down can be played"
    limit = shop.makespan(started) * (1 + 1e-12)
    seconds = list(shop.seconds)
    chosen: set[int] = set()
    parts = [_pairs(shop, order) for order in orders]
    while parts:
        part = parts.pop()
        trial = list(seconds)
        for job, weight in part:
            trial[job], trial[weight] = seconds[job] + seconds[weight], 0.0
        started = shop.play(orders, trial)
        assert started is not None, "times change no order"
        if max(map(float.__add__, started, trial)) <= limit:
            seconds = trial
            chosen |= {job for job, _ in part}
        elif len(part) > 1:
            middle = len(part) // 2
            parts += [part[:middle], part[middle:]]
    return frozenset(chosen)


def _pairs(shop: Shop, order: Sequence[int]) -> list[tuple[int, int]]:
    """Give the input gradients that their own weight gradients follow at once, with these."""
    pairs = []
    for job, following in pairwise(order):
        line, weight = shop.lines[shop.line_of[job]], shop.lines[shop.line_of[following]]
        is_own = weight.after == shop.line_of[job] and following - weight.first == job - line.first
        if is_own and weight.kind is ActionKind.WEIGHT:
            pairs.append((job, following))
    return pairs
