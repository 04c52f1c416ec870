"""The costs of stages and links, for the simulator and for schedules that are made for costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from pipelinejob.schedules.actions import Route, ScheduleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The connection from one rank to another; the opposite direction is a link of its own."""

    latency_s: float = 0.0
    message_s: float = 0.0  # bytes of a message / bandwidth: how long it occupies the link

    @property
    def seconds(self) -> float:
        """The time from sending a message to its arrival on a free link."""
        return self.latency_s + self.message_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds for one micro-batch of each stage of a route, on a rank of speed 1 that works on nothing else.

    The first stage's `input_s` is what it takes to reach the output of its first layer; there is
    no input gradient. A full backward takes `input_s + weight_s`. `ahead_s` is the part of
    `input_s` that needs no gradient, such as to run a stage's layers again: a rank that waits for
    one has done it when that arrives (unset: nothing). `speeds` (of each rank; unset: all 1)
    divide. `links` holds what differs from `link`, by (from rank, to rank); a stage that hands on
    within its rank pays nothing. `action_s` is what each action takes beside its compute, whatever
    the rank's speed.
    """

    forward_s: tuple[float, ...]
    input_s: tuple[float, ...]
    weight_s: tuple[float, ...]
    ahead_s: tuple[float, ...] | None = None
    action_s: float = 0.0
    speeds: tuple[float, ...] | None = None
    link: Link = Link()
    links: Mapping[tuple[int, int], Link] = field(default_factory=lambda: MappingProxyType({}))

    def between(self, source: int, target: int) -> Link:
        """Return the link from one rank to another."""
        return _WITHIN if source == target else self.links.get((source, target), self.link)

    def ahead_of_gradient_s(self, stage: int, rank: int) -> float:
        """Return what a stage's backward pass can do on a rank before its gradient is there."""
        return self.ahead_s[stage] / (self.speeds[rank] if self.speeds else 1.0) if self.ahead_s else 0.0


_WITHIN = Link()

# Gives the costs of the stages of whatever routes a schedule takes; all its routes have the same
# stages.
CostModel = Callable[[tuple[Route, ...]], Costs]


def shares(
    *,
    forward_s: Sequence[float],
    input_s: Sequence[float],
    weight_s: Sequence[float],
    speeds: Sequence[float] | None = None,
    link: Link = _WITHIN,
    links: Mapping[tuple[int, int], Link] | None = None,
) -> CostModel:
    """Return the cost model in which each rank's whole share of a micro-batch is given, as papers do.

    A rank that holds several chunks of a route pays an equal part for each. On several routes over
    the same stages a stage costs what the first route's rank says. Raises ScheduleError, when
    asked, for another number of ranks.
    """

    def model(routes: tuple[Route, ...]) -> Costs:
        route = routes[0]
        num_ranks = max(route) + 1
        for each in (forward_s, input_s, weight_s):
            if len(each) != num_ranks:
                raise ScheduleError(f"costs of {len(each)} ranks are given for {num_ranks}; give one for each rank")
        visits = [route.count(rank) for rank in range(num_ranks)]
        return Costs(
            forward_s=tuple(forward_s[rank] / visits[rank] for rank in route),
            input_s=tuple(input_s[rank] / visits[rank] for rank in route),
            weight_s=tuple(weight_s[rank] / visits[rank] for rank in route),
            speeds=None if speeds is None else tuple(speeds),
            link=link,
            links=MappingProxyType(dict(links or {})),
        )

    return model


def equal_shares(
    num_ranks: int, *, forward_s: float = 1.0, input_s: float = 1.0, weight_s: float = 1.0, link: Link = _WITHIN
) -> CostModel:
    """Return the cost model in which all ranks are alike."""
    return shares(
        forward_s=[forward_s] * num_ranks, input_s=[input_s] * num_ranks, weight_s=[weight_s] * num_ranks, link=link
    )
