"""`auto`: at least as good as every named schedule that fits, and better where it can be found.

Candidates are the named synchronous schedules within the caps, with their backwards in halves, and
what passes of the list scheduler make on every routing of the micro-batches; the best of them are
improved by local search. It is deterministic, uses no clock, and its effort is bounded. A routing
whose lower bound is no better than the best found is skipped, and a schedule that reaches the
bound is taken at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelinejob.scheduler.local_search import local_search
from pipelinejob.scheduler.lower_bound import (
    Routing,
    exists,
    job_shop_for,
    least_makespan_s,
    one_copy_routings,
    routings_of,
    two_copy_routings,
)
from pipelinejob.schedules.actions import Schedule, ScheduleError
from pipelinejob.schedules.job_shop.job_shop import JobShop, Orders
from pipelinejob.schedules.job_shop.list_scheduler import PassSeries, Patience, passes
from pipelinejob.schedules.job_shop.orders import fused, orders_of, schedule_of
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.timetable import NEVER
from pipelinejob.simulation.simulate import simulate

Named = Callable[[Setting], Iterable[Schedule]]

_EFFORT = 400_000  # jobs that passes may place, and as many that local search may play, on each routing
_MAX_TRIES = 200  # of local search, from one start
_STARTS = 4
_CLOSE = 1 + 1e-9


def _series(weights_behind: float, *, inputs_first: bool, patience: tuple[float, float, float]) -> PassSeries:
    forward, input_, weight = patience
    both = Patience(forward=forward, input=input_, weight=weight)
    return PassSeries(weights_behind=weights_behind, inputs_first=inputs_first, forth=both, back=both)


# Each one adds most, over 450 random cases, to what those before it find.
_LATE = 1e4  # micro-batches: weight gradients when nothing else is left
_SERIES = (
    _series(0, inputs_first=False, patience=(0.5, 0.5, 0.5)),
    _series(0, inputs_first=False, patience=(1.0, 1.0, 1.0)),
    _series(0, inputs_first=False, patience=(0.1, 0.1, 0.1)),
    _series(_LATE, inputs_first=True, patience=(0.0, 1.0, 1.0)),
    _series(_LATE, inputs_first=True, patience=(0.5, 0.5, 0.5)),
    _series(2, inputs_first=True, patience=(1.0, 0.0, 0.0)),
    _series(0, inputs_first=False, patience=(0.1, 0.0, 0.5)),
    _series(0, inputs_first=True, patience=(0.5, 0.5, 0.5)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A schedule, its makespan, and what none can be shorter than on the routings looked at."""

    schedule: Schedule
    makespan_s: float
    bound_s: float

    @property
    def distance(self) -> float:
        """By which share of the bound the makespan is above it."""
        return max(0.0, self.makespan_s / self.bound_s - 1)  # below 0 by rounding alone


def search(setting: Setting, named: Named) -> Found:
    """Find the best schedule for a setting's costs and caps.

    `named` gives those that can be made by name.

    A schedule that needs each stage's weights twice is taken, and searched for, only where such a
    named one is the best of all. Raises ScheduleError when nothing fits the caps, with the
    smallest cap that would do.
    """
    caps = setting.activation_caps
    if caps is not None and min(caps) < 1:
        raise ScheduleError(
            f"no schedule keeps within a memory cap of {min(caps):g} micro-batches; the smallest that would do is 1"
        )
    fitting = [schedule for schedule in named(setting) if _fits(schedule, setting)]
    makespans = [simulate(each, setting.costs_of(*each.routes)).makespan_s for each in fitting]
    candidates = _Candidates(setting)
    for copies, routings in ((1, one_copy_routings(setting)), (2, two_copy_routings(setting))):
        of_these = [each for each in zip(makespans, fitting, strict=True) if len(each[1].routes) == copies]
        if copies == 1 or any(makespan_s < candidates.best.makespan_s for makespan_s, _ in of_these):
            for _, schedule in of_these:
                candidates.read(schedule)
            for routing in routings:
                candidates.make(routing)
            candidates.improve(copies=copies)
    found = candidates.best.schedule()
    made_s = simulate(found, setting.costs_of(*found.routes)).makespan_s
    makespan_s, schedule = min([(made_s, found), *zip(makespans, fitting, strict=True)], key=lambda each: each[0])
    return Found(schedule=schedule, makespan_s=makespan_s, bound_s=candidates.bound_s(copies=len(schedule.routes)))


def _fits(schedule: Schedule, setting: Setting) -> bool:
    caps = setting.activation_caps or (NEVER,) * setting.num_ranks
    is_within = all(peak <= cap for peak, cap in zip(peak_activations(schedule), caps, strict=True))
    return is_within and exists((schedule.routes, schedule.route_of), setting)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instance:
    """A routing, as a job shop."""

    routing: Routing
    shop: JobShop
    bound_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    instance: _Instance
    orders: Orders
    makespan_s: float

    def schedule(self) -> Schedule:
        shop = self.instance.shop
        return schedule_of(shop, self.orders, *self.instance.routing, fused(shop, self.orders))


class _Candidates:
    """What has been found so far."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._instances: dict[Routing, _Instance] = {}
        self._all: list[_Candidate] = []

    def bound_s(self, *, copies: int) -> float:
        """Return what no schedule can be shorter than, as `lower_bound_s`."""
        return min(self._instance(routing).bound_s for routing in routings_of(self._setting, copies=copies))

    @property
    def best(self) -> _Candidate:
        """The shortest; of equally short ones, the first found."""
        return min(self._all, key=lambda each: each.makespan_s)

    def read(self, schedule: Schedule) -> None:
        """Take a schedule for a candidate."""
        instance = self._instance((schedule.routes, schedule.route_of))
        orders = orders_of(instance.shop, schedule)
        self._add(instance, orders, _makespan_s(instance.shop, orders))

    def make(self, routing: Routing) -> None:
        """Make candidates with the list scheduler on a routing."""
        instance = self._instance(routing)
        if not self._can_gain(instance):
            return
        num_series = max(1, _EFFORT // (instance.shop.num_jobs * _SERIES[0].num_passes))
        for each in passes(instance.shop, _SERIES[:num_series]):
            self._add(instance, each.orders, each.makespan_s)
            if each.makespan_s <= instance.bound_s * _CLOSE:
                return

    def improve(self, *, copies: int) -> None:
        """Run local search from the best candidates, from one of equally long ones on the same routing."""
        of_these = [each for each in reversed(self._all) if len(each.instance.routing[0]) == copies]
        different = {(id(each.instance), each.makespan_s): each for each in of_these}
        for each in sorted(different.values(), key=lambda each: each.makespan_s)[:_STARTS]:
            if self._can_gain(each.instance):
                shop = each.instance.shop
                tries = min(_MAX_TRIES, _EFFORT // shop.num_jobs)
                orders = local_search(shop, each.orders, tries, enough_s=each.instance.bound_s)
                self._add(each.instance, orders, _makespan_s(shop, orders))

    def _can_gain(self, instance: _Instance) -> bool:
        return not self._all or self.best.makespan_s > instance.bound_s * _CLOSE

    def _add(self, instance: _Instance, orders: Orders, makespan_s: float) -> None:
        self._all.append(_Candidate(instance=instance, orders=orders, makespan_s=makespan_s))

    def _instance(self, routing: Routing) -> _Instance:
        if routing not in self._instances:
            shop = job_shop_for(routing, self._setting)
            self._instances[routing] = _Instance(routing=routing, shop=shop, bound_s=least_makespan_s(shop))
        return self._instances[routing]


def _makespan_s(shop: JobShop, orders: Orders) -> float:
    started = shop.play(orders)
    assert started is not None, "named schedules can be played, and local search keeps to what can"
    return shop.makespan(started)
