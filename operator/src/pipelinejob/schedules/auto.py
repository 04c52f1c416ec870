"""`auto`: at least as good as every named schedule that fits, and better where it can be found.

Candidates are the named synchronous schedules within the caps, with their backwards in halves, and what passes of the
list scheduler make on every way that micro-batches can take; the best of them are improved by local search. Nothing of
it is random or looks at a clock, and all of it is bounded. A way whose lower bound is no better than what is found is
not looked at, and what reaches the bound is taken at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelinejob.schedules.actions import Schedule, ScheduleError
from pipelinejob.schedules.bounds import Ways, double_ways, exists, least_makespan_s, shop_for, single_ways, ways_of
from pipelinejob.schedules.climb import climb
from pipelinejob.schedules.greedy import Patience, Taste, passes
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.orders import fused, orders_of, schedule_of
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.shop import NEVER, Orders, Shop
from pipelinejob.simulate import simulate

Named = Callable[[Setting], Iterable[Schedule]]

_EFFORT = 400_000  # jobs that passes may place, and as many that local search may play, on each way
_MAX_TRIES = 200  # of local search, from one start
_STARTS = 4
_CLOSE = 1 + 1e-9


def _taste(weights_behind: float, *, inputs_first: bool, patience: tuple[float, float, float]) -> Taste:
    forward, input_, weight = patience
    both = Patience(forward=forward, input=input_, weight=weight)
    return Taste(weights_behind=weights_behind, inputs_first=inputs_first, forth=both, back=both)


# Each one adds most, over 450 random cases, to what those before it find.
_LATE = 1e4  # micro-batches: weight gradients when nothing else is left
_TASTES = (
    _taste(0, inputs_first=False, patience=(0.5, 0.5, 0.5)),
    _taste(0, inputs_first=False, patience=(1.0, 1.0, 1.0)),
    _taste(0, inputs_first=False, patience=(0.1, 0.1, 0.1)),
    _taste(_LATE, inputs_first=True, patience=(0.0, 1.0, 1.0)),
    _taste(_LATE, inputs_first=True, patience=(0.5, 0.5, 0.5)),
    _taste(2, inputs_first=True, patience=(1.0, 0.0, 0.0)),
    _taste(0, inputs_first=False, patience=(0.1, 0.0, 0.5)),
    _taste(0, inputs_first=True, patience=(0.5, 0.5, 0.5)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A schedule, its makespan, and what none can be shorter than on the ways looked at."""

    schedule: Schedule
    makespan_s: float
    bound_s: float

    @property
    def distance(self) -> float:
        """Give by which share of the bound the makespan is above it."""
        return max(0.0, self.makespan_s / self.bound_s - 1)  # below 0 by rounding alone


def search(setting: Setting, named: Named) -> Found:
    """Find the best schedule for a setting's costs and caps; `named` gives those that can be made by name.

    A schedule that needs each stage's weights twice is taken, and searched for, only where such a named one is the best
    of all. Raises ScheduleError when nothing fits the caps, with the smallest cap that would do.
    """
    caps = setting.activation_caps
    if caps is not None and min(caps) < 1:
        raise ScheduleError(
            f"no schedule keeps within a memory cap of {min(caps):g} micro-batches; the smallest that would do is 1"
        )
    fitting = [schedule for schedule in named(setting) if _fits(schedule, setting)]
    makespans = [simulate(each, setting.costs_of(*each.routes)).makespan_s for each in fitting]
    candidates = _Candidates(setting)
    for copies, all_ways in ((1, single_ways(setting)), (2, double_ways(setting))):
        of_these = [each for each in zip(makespans, fitting, strict=True) if len(each[1].routes) == copies]
        if copies == 1 or any(makespan_s < candidates.best.makespan_s for makespan_s, _ in of_these):
            for _, schedule in of_these:
                candidates.read(schedule)
            for ways in all_ways:
                candidates.make(ways)
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
class _Course:
    """Ways, as a job shop."""

    ways: Ways
    shop: Shop
    bound_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    course: _Course
    orders: Orders
    makespan_s: float

    def schedule(self) -> Schedule:
        shop = self.course.shop
        return schedule_of(shop, self.orders, *self.course.ways, fused(shop, self.orders))


class _Candidates:
    """What has been found so far."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._courses: dict[Ways, _Course] = {}
        self._all: list[_Candidate] = []

    def bound_s(self, *, copies: int) -> float:
        """Give what no schedule can be shorter than, as `lower_bound_s`."""
        return min(self._course(ways).bound_s for ways in ways_of(self._setting, copies=copies))

    @property
    def best(self) -> _Candidate:
        """Give the shortest; of equally short ones, the first found."""
        return min(self._all, key=lambda each: each.makespan_s)

    def read(self, schedule: Schedule) -> None:
        """Take a schedule for a candidate."""
        course = self._course((schedule.routes, schedule.route_of))
        orders = orders_of(course.shop, schedule)
        self._add(course, orders, _makespan_s(course.shop, orders))

    def make(self, ways: Ways) -> None:
        """Let the list scheduler make candidates on some ways."""
        course = self._course(ways)
        if not self._can_gain(course):
            return
        num_tastes = max(1, _EFFORT // (course.shop.num_jobs * _TASTES[0].num_passes))
        for each in passes(course.shop, _TASTES[:num_tastes]):
            self._add(course, each.orders, each.makespan_s)
            if each.makespan_s <= course.bound_s * _CLOSE:
                return

    def improve(self, *, copies: int) -> None:
        """Let local search begin from the best candidates, of equally long ones on the same ways from one."""
        of_these = [each for each in reversed(self._all) if len(each.course.ways[0]) == copies]
        different = {(id(each.course), each.makespan_s): each for each in of_these}
        for each in sorted(different.values(), key=lambda each: each.makespan_s)[:_STARTS]:
            if self._can_gain(each.course):
                shop = each.course.shop
                tries = min(_MAX_TRIES, _EFFORT // shop.num_jobs)
                orders = climb(shop, each.orders, tries, enough_s=each.course.bound_s)
                self._add(each.course, orders, _makespan_s(shop, orders))

    def _can_gain(self, course: _Course) -> bool:
        return not self._all or self.best.makespan_s > course.bound_s * _CLOSE

    def _add(self, course: _Course, orders: Orders, makespan_s: float) -> None:
        self._all.append(_Candidate(course=course, orders=orders, makespan_s=makespan_s))

    def _course(self, ways: Ways) -> _Course:
        if ways not in self._courses:
            shop = shop_for(ways, self._setting)
            self._courses[ways] = _Course(ways=ways, shop=shop, bound_s=least_makespan_s(shop))
        return self._courses[ways]


def _makespan_s(shop: Shop, orders: Orders) -> float:
    started = shop.play(orders)
    assert started is not None, "named schedules can be played, and local search keeps to what can"
    return shop.makespan(started)
