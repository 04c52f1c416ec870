"""`auto`: never worse than a named schedule that fits the memory caps, often better, and never below the bound."""

import random

import pytest

from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.catalogue import build, named
from pipelinejob.schedules.costs import Link, shares
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.search import lower_bound_s, search
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.validate import is_valid, validate
from pipelinejob.simulate import simulate


def case(seed: int, *, unequal: bool) -> Setting:
    """Draw sizes, costs (unequal ones within a factor of four), a link, and caps from 1 to 2p."""
    draw = random.Random(seed)
    p, m = draw.randint(2, 5), draw.randint(2, 12)

    def seconds() -> list[float]:
        return [2 ** draw.uniform(0, 2) for _ in range(p)] if unequal else [2 ** draw.uniform(0, 2)] * p

    forward_s, input_s, weight_s = seconds(), seconds(), seconds()
    link = Link(latency_s=draw.uniform(0, 0.2) * min(forward_s))
    caps = tuple(float(draw.randint(1, 2 * p)) for _ in range(p)) if seed % 3 else (float(draw.randint(1, 2 * p)),) * p
    costs = shares(forward_s=forward_s, input_s=input_s, weight_s=weight_s, link=link)
    return Setting(num_ranks=p, num_micro_batches=m, costs=costs, activation_caps=caps)


def best_named_s(setting: Setting) -> float:
    fitting = [each for each in named(setting) if is_valid(each, activation_caps=setting.activation_caps)]
    return min((simulate(s, setting.costs_of(*s.routes)).makespan_s for s in fitting), default=float("inf"))


@pytest.mark.parametrize("unequal", [True, False])
def test_auto_never_loses_to_a_named_schedule_and_wins_half_of_the_unequal_cases(unequal):
    better = 0
    for seed in range(14):
        setting = case(seed, unequal=unequal)
        found, best_s = search(setting, named), best_named_s(setting)

        validate(found.schedule, activation_caps=setting.activation_caps)
        assert found.makespan_s <= best_s * (1 + 1e-9)
        assert found.makespan_s >= found.bound_s * (1 - 1e-9)
        better += found.makespan_s < best_s * (1 - 1e-6)

    assert better >= 7 or not unequal


def test_the_same_setting_gives_the_same_schedule():
    setting = case(3, unequal=True)

    assert search(setting, named).schedule == search(setting, named).schedule


def test_no_schedule_is_below_the_bound():
    for seed in range(12):
        setting = case(seed, unequal=bool(seed % 2))
        bound_s = lower_bound_s(setting)
        for schedule in named(setting):
            assert simulate(schedule, setting.costs_of(*schedule.routes)).makespan_s >= bound_s * (1 - 1e-9)


def test_caps_that_nothing_keeps_within_are_refused_with_the_smallest_that_would_do():
    with pytest.raises(ScheduleError, match="no schedule keeps within the memory cap; the smallest that would do is"):
        build(ScheduleName.AUTO, Setting(num_ranks=3, num_micro_batches=4, activation_caps=(0.2, 0.2, 0.2)))
