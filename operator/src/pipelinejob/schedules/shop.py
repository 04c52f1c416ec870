"""A pipeline's step as a job shop: what searching for schedules works on, in flat arrays of numbers.

All micro-batches of a route are alike, so nothing is lost by taking them in order everywhere, and all that is left to
decide is how each rank merges its **lines**. A line is every action of one kind at one stage of a route, one for each
micro-batch; a **job** is one of them, as a number. Backwards are in halves; `orders` says what becomes of whole ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pipelinejob.schedules.actions import ActionKind, Place, Route
from pipelinejob.schedules.costs import Costs
from pipelinejob.schedules.validate import RECEIVES_AHEAD

KINDS = (ActionKind.FORWARD, ActionKind.INPUT, ActionKind.WEIGHT)
NEVER = float("inf")

Orders = list[list[int]]  # of each rank, its jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """All actions of one kind at one stage of a route.

    Its jobs are numbered `first` to `first + size - 1`, as the micro-batches are in order. Job n of the line comes
    after job n of the line `after` in the same rank's list, and sends to job n of the line `feeds`. `latency_s` is from
    when a message has left its link to when the job that it feeds can start; below zero where that has things to do
    ahead. `holds` is the change in activations of a chunk that a job makes: above zero, from its start on; below, from
    its end.
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
        self._links = [
            (-1 if line.link is None else line.link, line.message_s, line.latency_s)
            for line in lines
            for _ in range(line.size)
        ]
        self.source = [-1] * self.num_jobs  # the job that each waits for a message of, or the same on its own rank
        self.target = [-1] * self.num_jobs
        self.fed_by: list[int | None] = [None] * len(lines)
        for number, line in enumerate(lines):
            if line.feeds is not None:
                self.fed_by[line.feeds] = number
                first = lines[line.feeds].first
                self.target[line.first : line.first + line.size] = range(first, first + line.size)
                self.source[first : first + line.size] = range(line.first, line.first + line.size)

    def mirrored(self) -> "Shop":
        """Give the shop in which time runs backwards: jobs keep their numbers, and their lines run from last to first.

        What is played well from its end in this one is played well to its end in the other; links are shared out from
        the other side, which comes close but is not the same.
        """
        after: list[int | None] = [None] * len(self.lines)
        for number, line in enumerate(self.lines):
            if line.after is not None:
                after[line.after] = number
        lines = []
        for number, line in enumerate(self.lines):
            source = self.fed_by[number]
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
        rank_of, target, links = self.rank_of, self.target, self._links
        ready = [NEVER if source >= 0 else 0.0 for source in self.source]
        link_free = [0.0] * self.num_links
        started = [0.0] * self.num_jobs
        position, free, waits_for = [0] * self.num_ranks, [0.0] * self.num_ranks, [-1] * self.num_ranks
        awake = list(range(self.num_ranks))
        while awake:
            rank = awake.pop()
            order, at, now = orders[rank], position[rank], free[rank]
            waits_for[rank] = -1
            for job in order[at:]:
                if ready[job] > now:
                    if ready[job] == NEVER:
                        waits_for[rank] = job
                        break
                    now = ready[job]
                started[job] = now
                now += seconds[job]
                at += 1
                receiver = target[job]
                if receiver >= 0:
                    link, message_s, latency_s = links[job]
                    if link < 0:
                        ready[receiver] = now
                    else:
                        link_free[link] = leaves = max(now, link_free[link]) + message_s
                        ready[receiver] = leaves + latency_s
                        if waits_for[rank_of[receiver]] == receiver:
                            awake.append(rank_of[receiver])
            position[rank], free[rank] = at, now
        return started if sum(position) == self.num_jobs else None

    def flows(self, orders: Orders) -> bool:
        """Say whether no rank waits for ever even where sends wait for their receivers, as `validate` has it."""
        done, sent = [0] * len(self.lines), [0] * len(self.lines)
        position, is_held_up = [0] * self.num_ranks, [False] * self.num_ranks
        awake = list(range(self.num_ranks))
        while awake:
            rank = awake.pop()
            order = orders[rank]
            while position[rank] < len(order):
                number = self.line_of[order[position[rank]]]
                line, sender = self.lines[number], self.fed_by[number]
                if not is_held_up[rank]:
                    if sender is not None and sent[sender] <= done[number]:
                        break
                    done[number] += 1
                    if sender is not None:
                        awake.append(self.lines[sender].place.rank)
                if line.feeds is not None:
                    is_held_up[rank] = line.link is not None and sent[number] >= done[line.feeds] + RECEIVES_AHEAD
                    if is_held_up[rank]:
                        break
                    sent[number] += 1
                    awake.append(self.lines[line.feeds].place.rank)
                position[rank] += 1
        return all(at == len(order) for at, order in zip(position, orders, strict=True))

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
        is_gradient = crosses and KINDS[kind] is ActionKind.INPUT
        ahead_s = self._costs.ahead_of_gradient_s(next_stage, ranks[next_stage]) if is_gradient else 0.0
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
            latency_s=link.latency_s - ahead_s,
            holds=self._holds[kind],
        )

    def _number(self, route: int, kind: int, stage: int) -> int:
        return (route * len(KINDS) + kind) * self._num_stages + stage


def in_line_order(shop: Shop) -> list[int]:
    """Sort lines so that each comes after those that it waits for."""
    waits = [0] * len(shop.lines)
    for line in shop.lines:
        if line.feeds is not None:
            waits[line.feeds] += 1
    followers: list[list[int]] = [[] for _ in shop.lines]
    for number, line in enumerate(shop.lines):
        if line.feeds is not None:
            followers[number].append(line.feeds)
        if line.after is not None:
            followers[line.after].append(number)
            waits[number] += 1
    order = [number for number, count in enumerate(waits) if count == 0]
    for number in order:
        for follower in followers[number]:
            waits[follower] -= 1
            if waits[follower] == 0:
                order.append(follower)
    return order
