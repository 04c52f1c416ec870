"""The action language: what each rank does, in which order, as a value that prints, compares and is played.

A **rank** is one device of one pipeline, one pod. A **stage** is a stretch of the model's layers.
Each micro-batch travels along a **route**: the rank of each stage, first stage first. With one
stage a rank the route is 0, 1, .., p-1; looped 0, 1, .., p-1, 0, 1, ..; V-shaped 0, .., p-1, p-1,
.., 0. Bidirectional schedules have two routes over the same stages, so that a stage stands on two
ranks, and each micro-batch takes one of them. A **chunk** is a stage as its rank counts it: chunk
c of a rank is the c-th visit of a micro-batch's route to that rank.

An action prints as `F3` (forward of micro-batch 3), `B3` (full backward), `I3` (gradient of the
input), `W3` (gradients of the weights); `F3.1` is on chunk 1, `F3@2` uses weight version 2,
`F3.1@2` both. `O2` makes weight version 2 of the rank's parameters out of the gradients since the
update before; only asynchronous schedules have it, synchronous ones update once after the step.
Sends and receives are not written down: they follow from routes and order (`needs`).

Throughout, p is the number of ranks, m of micro-batches, v of chunks on a rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from pipelinejob.base.errors import PipelineJobError


class ScheduleError(PipelineJobError):
    """A schedule that cannot be read, built or played."""


class ActionKind(StrEnum):
    """What is done."""

    FORWARD = "F"
    BACKWARD = "B"  # both halves at once
    INPUT = "I"  # the gradient of the stage's input, which the previous stage waits for
    WEIGHT = "W"  # the gradients of the stage's weights, which nobody waits for
    UPDATE = "O"  # the optimiser's step


# Kinds by whose end a stage's gradient is known to the stage before it.
GIVES_GRADIENT = frozenset({ActionKind.BACKWARD, ActionKind.INPUT})


class Action(NamedTuple):
    """One unit of work of one rank. Of an UPDATE, `micro_batch` is the version that it makes."""

    kind: ActionKind
    micro_batch: int
    chunk: int = 0
    version: int | None = None

    def __str__(self) -> str:
        chunk = f".{self.chunk}" if self.chunk else ""
        version = "" if self.version is None else f"@{self.version}"
        return f"{self.kind}{self.micro_batch}{chunk}{version}"


Route = tuple[int, ...]  # the rank of each stage, first stage first
RankActions = tuple[Action, ...]


class Place(NamedTuple):
    """A stage as a rank holds it."""

    rank: int
    chunk: int


class Held(NamedTuple):
    """A chunk of a rank, as the whole pipeline knows it: a stage of a route."""

    route: int
    stage: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Every rank's list of actions, and the routes that they imply.

    `route_of[k]` is the route of micro-batch k. All routes have the same stages and ranks.
    """

    routes: tuple[Route, ...]
    route_of: tuple[int, ...]
    ranks: tuple[RankActions, ...]

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @property
    def num_stages(self) -> int:
        return len(self.routes[0])

    @property
    def num_micro_batches(self) -> int:
        return len(self.route_of)

    @cached_property
    def places(self) -> tuple[tuple[Place, ...], ...]:
        """Where each stage of each route stands: `places[route][stage]`."""
        return tuple(tuple(_places(route)) for route in self.routes)

    @cached_property
    def stages_of(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The stages that a rank holds of each route, chunk by chunk: `stages_of[route][rank][chunk]`."""
        return tuple(
            tuple(tuple(s for s, on in enumerate(route) if on == rank) for rank in range(self.num_ranks))
            for route in self.routes
        )

    def held_by(self, rank: int) -> tuple[Held, ...]:
        """Return all stages of a rank, route by route; a stage of two routes is listed twice."""
        return tuple(Held(route, stage) for route, stages in enumerate(self.stages_of) for stage in stages[rank])

    def stage_of(self, rank: int, action: Action) -> int:
        """Return the stage that an action of a rank works on.

        Raises IndexError when there is no such micro-batch, or the rank no such chunk.
        """
        return self.stages_of[self.route_of[action.micro_batch]][rank][action.chunk]

    def place_of(self, micro_batch: int, stage: int) -> Place:
        """Return the rank and chunk that run a stage for a micro-batch."""
        return self.places[self.route_of[micro_batch]][stage]

    @cached_property
    def is_forward_only(self) -> bool:
        return all(action.kind is ActionKind.FORWARD for actions in self.ranks for action in actions)

    @cached_property
    def is_asynchronous(self) -> bool:
        """Whether weights change within the step."""
        return any(action.kind is ActionKind.UPDATE for actions in self.ranks for action in actions)

    @cached_property
    def is_split(self) -> bool:
        """Whether any backward pass is done in two halves."""
        return any(action.kind is ActionKind.WEIGHT for actions in self.ranks for action in actions)

    @cached_property
    def wiring(self) -> "Wiring":
        """The schedule as flat arrays, for playing it many times."""
        return Wiring(self)

    def forward_only(self) -> "Schedule":
        """Return the forwards alone, in their order: what evaluation plays, whatever the schedule."""
        return Schedule(
            routes=self.routes,
            route_of=self.route_of,
            ranks=tuple(
                tuple(a._replace(version=None) for a in actions if a.kind is ActionKind.FORWARD)
                for actions in self.ranks
            ),
        )


class Work(NamedTuple):
    """The work that several actions of a rank do, each for another micro-batch."""

    rank: int
    kind: ActionKind
    stage: int  # -1 for an update, which is of all of them


class Wiring:
    """A schedule as flat arrays: one entry an action, rank after rank in their lists' order.

    An action has at most one source on another stage (what it receives) and one target (what it
    sends to); -1 stands for none. `works[work_of[n]]` is what it does, `links[link_of[n]]` the
    ranks that its message goes between.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.offsets = [0, *accumulate(map(len, schedule.ranks))]
        self.rank_of = [rank for rank, actions in enumerate(schedule.ranks) for _ in actions]
        self.works: list[Work] = []
        self.work_of: list[int] = []
        size = self.offsets[-1]
        self.source, self.target, self.link_of = [-1] * size, [-1] * size, [-1] * size
        self.links: list[tuple[int, int]] = []
        self._lay_out(schedule)

    def _lay_out(self, schedule: Schedule) -> None:
        stages = schedule.num_stages
        forwards = [-1] * (schedule.num_micro_batches * stages)
        gradients = [-1] * len(forwards)
        numbers: dict[Work, int] = {}
        for rank, actions in enumerate(schedule.ranks):
            stages_of = [of_rank[rank] for of_rank in schedule.stages_of]
            for kind, micro_batch, chunk, _ in actions:
                number, stage = len(self.work_of), -1
                if kind is not ActionKind.UPDATE:
                    stage = stages_of[schedule.route_of[micro_batch]][chunk]
                    if kind is ActionKind.FORWARD:
                        forwards[micro_batch * stages + stage] = number
                    elif kind in GIVES_GRADIENT:
                        gradients[micro_batch * stages + stage] = number
                work = Work(rank, kind, stage)
                self.work_of.append(numbers.setdefault(work, len(numbers)))
        self.works = list(numbers)
        self._connect(forwards, gradients, stages)

    def _connect(self, forwards: list[int], gradients: list[int], stages: int) -> None:
        links: dict[tuple[int, int], int] = {}
        pairs = [(n, n + 1) for n in range(len(forwards) - 1) if (n + 1) % stages]
        sent = [(forwards[here], forwards[there]) for here, there in pairs]
        sent += [(gradients[there], gradients[here]) for here, there in pairs if gradients[there] >= 0]
        for source, target in sent:
            self.source[target] = source
            self.target[source] = target
            ends = self.rank_of[source], self.rank_of[target]
            if ends[0] != ends[1]:
                self.link_of[source] = links.setdefault(ends, len(links))
        self.links = list(links)


def _places(route: Route) -> Iterator[Place]:
    visits: dict[int, int] = {}
    for rank in route:
        visits[rank] = visits.get(rank, -1) + 1
        yield Place(rank, visits[rank])


def straight(num_ranks: int) -> Route:
    """Return the route with one stage a rank."""
    return tuple(range(num_ranks))


def looped(num_ranks: int, num_chunks: int) -> Route:
    """Return the route that passes all ranks in order, `num_chunks` times."""
    return straight(num_ranks) * num_chunks


def folded(num_ranks: int, num_turns: int = 1) -> Route:
    """Return the route that turns round at the last rank and at the first: a V with one turn, waves with more.

    Each stage but the outermost hands its activation on within its rank at a turn. `num_turns` 1
    gives 2p stages, 3 gives 4p.
    """
    there = straight(num_ranks)
    return tuple(rank for leg in range(num_turns + 1) for rank in (there if leg % 2 == 0 else there[::-1]))


def one_route(route: Route, ranks: Sequence[Sequence[Action]], num_micro_batches: int) -> Schedule:
    """Put a schedule together whose micro-batches all take the same route."""
    return Schedule(routes=(route,), route_of=(0,) * num_micro_batches, ranks=tuple(map(tuple, ranks)))


def F(micro_batch: int, chunk: int = 0, version: int | None = None) -> Action:  # noqa: N802 # as it prints
    """Make a forward."""
    return Action(ActionKind.FORWARD, micro_batch, chunk, version)


def B(micro_batch: int, chunk: int = 0, version: int | None = None) -> Action:  # noqa: N802
    """Make a full backward."""
    return Action(ActionKind.BACKWARD, micro_batch, chunk, version)


def I(micro_batch: int, chunk: int = 0, version: int | None = None) -> Action:  # noqa: N802, E743
    """Make an input gradient."""
    return Action(ActionKind.INPUT, micro_batch, chunk, version)


def W(micro_batch: int, chunk: int = 0, version: int | None = None) -> Action:  # noqa: N802
    """Make the weight gradients."""
    return Action(ActionKind.WEIGHT, micro_batch, chunk, version)


def O(version: int) -> Action:  # noqa: N802, E743
    """Make the update that gives weight version `version`.

    The weights a step begins with are version 0.
    """
    return Action(ActionKind.UPDATE, version)
