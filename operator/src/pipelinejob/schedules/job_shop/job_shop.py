"""A pipeline's step as a job shop: what searching for schedules works on, in flat arrays of numbers.

All micro-batches of a route are alike, so nothing is lost by taking them in order everywhere, and
all that is left to decide is how each rank merges its **lines**. A line is every action of one
kind at one stage of a route, one for each micro-batch; a **job** is one of them, as a number.
Backwards are in halves; `orders` says what becomes of whole ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pipelinejob.schedules.actions import ActionKind, Place, Route
from pipelinejob.schedules.costs import Costs
from pipelinejob.schedules.deadlock import deadlock
from pipelinejob.schedules.timetable import NEVER, Jobs, timetable

KINDS = (ActionKind.FORWARD, ActionKind.INPUT, ActionKind.WEIGHT)

Orders = list[list[int]]  # of each rank, its jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """All actions of one kind at one stage of a route.

    Its jobs are numbered `first` to `first + size - 1`, as the micro-batches are in order. Job n
    of the line comes after job n of the line `after` in the same rank's list, and sends to job n
    of the line `feeds`. `latency_s` is from when a message has left its link to when the job that
    it feeds can start; below zero where that has things to do ahead. `holds` is the change in
    activations of a chunk that a job makes: above zero, from its start on; below, from its end.
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


class JobShop:
    """The lines of a step, and their jobs.

    `capacity` is how many activations of one chunk each rank may hold at once.
    """

    def __init__(self, lines: Sequence[Line], *, capacity: Sequence[float], num_links: int) -> None:
        self.lines = tuple(lines)
        self.capacity = tuple(capacity)
        self.num_links = num_links
        self.num_ranks = len(capacity)
        self.of_rank = tuple(
            tuple(number for number, line in enumerate(lines) if line.place.rank == rank)
            for rank in range(self.num_ranks)
        )
        self.num_jobs = sum(line.size for line in lines)
        self.line_of = [number for number, line in enumerate(lines) for _ in range(line.size)]
        self.rank_of = [lines[number].place.rank for number in self.line_of]
        self.seconds = [lines[number].seconds for number in self.line_of]
        self.source = [-1] * self.num_jobs  # the job that each waits for a message of, or the same on its own rank
        self.target = [-1] * self.num_jobs
        self.fed_by: list[int | None] = [None] * len(lines)
        for number, line in enumerate(lines):
            if line.feeds is not None:
                self.fed_by[line.feeds] = number
                first = lines[line.feeds].first
                self.target[line.first : line.first + line.size] = range(first, first + line.size)
                self.source[first : first + line.size] = range(line.first, line.first + line.size)
        links = [(-1 if line.link is None else line.link, line.message_s, line.latency_s) for line in lines]
        self._jobs = Jobs(
            rank_of=self.rank_of,
            source=self.source,
            target=self.target,
            links=[links[number] for number in self.line_of],
            num_links=num_links,
        )
        self._channels = [-1 if lines[number].link is None else number for number in self.line_of]

    def mirrored(self) -> "JobShop":
        """Return the job shop with time reversed: jobs keep their numbers, and lines run from last to first.

        A good ending in one is a good beginning in the other. Links serve messages from the other
        side, which is close to the original but not equal.
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
        return JobShop(lines, capacity=self.capacity, num_links=self.num_links)

    def mirror(self, orders: Orders) -> Orders:
        """Turn orders of this shop into those of the mirrored one, and back."""
        ends = [2 * line.first + line.size - 1 for line in self.lines]
        return [[ends[self.line_of[job]] - job for job in reversed(order)] for order in orders]

    def play(self, orders: Orders, seconds: Sequence[float] | None = None) -> list[float] | None:
        """Return each job's start, by the same rules as `simulate`.

        None where ranks wait for each other for ever.
        """
        played = timetable(self._jobs, orders, self.seconds if seconds is None else seconds)
        return None if played is None else played.started

    def flows(self, orders: Orders) -> bool:
        """Whether no rank waits for ever even where sends wait for their receivers, as `validate` has it."""
        return deadlock(self._jobs, orders, self._channels) is None

    def makespan(self, started: Sequence[float]) -> float:
        """Return when the last job ends."""
        return max(map(float.__add__, started, self.seconds))


def job_shop_of(
    routes: tuple[Route, ...],
    route_of: Sequence[int],
    costs: Costs,
    *,
    caps: Sequence[float] | None = None,
    kept_for_weight: float = 1.0,
) -> JobShop:
    """Lay out the lines of all micro-batches along their routes.

    `caps` bounds each rank's activations in shares of a micro-batch. `kept_for_weight` is the part
    of an activation that is still held between `I` and `W`: all of it by `peak_activations`.
    """
    num_ranks = max(routes[0]) + 1
    visits = [routes[0].count(rank) for rank in range(num_ranks)]
    capacity = [NEVER] * num_ranks if caps is None else [cap * v for cap, v in zip(caps, visits, strict=True)]
    layout = _Layout(routes, route_of, costs, kept_for_weight)
    return JobShop(layout.lines(), capacity=capacity, num_links=len(layout.links))


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


def in_line_order(shop: JobShop) -> list[int]:
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
