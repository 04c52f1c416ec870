"""`auto`: never worse than a named schedule, mostly better, held against exact solutions and lower bounds."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelinejob.scheduler.auto import search
from pipelinejob.scheduler.catalogue import build, named
from pipelinejob.scheduler.local_search import local_search
from pipelinejob.scheduler.lower_bound import (
    job_shop_for,
    lower_bound_s,
    one_copy_routings,
    preemptive_makespan,
    two_copy_routings,
)
from pipelinejob.schedules.actions import Route, ScheduleError, folded, looped, straight
from pipelinejob.schedules.costs import CostModel, Costs, Link, equal_shares, shares
from pipelinejob.schedules.job_shop.job_shop import JobShop, Orders
from pipelinejob.schedules.job_shop.list_scheduler import Patience, list_schedule
from pipelinejob.schedules.job_shop.orders import fused, orders_of, schedule_of
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse, render
from pipelinejob.schedules.validate import validate
from pipelinejob.simulation.simulate import simulate
from support.examples import examples
from support.plans.exact import least_makespan
from support.plans.random_profiles import best_named_s, random_profile

CLOSE = 1e-9


def makespan_s(schedule, setting: Setting) -> float:
    return simulate(schedule, setting.costs_of(*schedule.routes)).makespan_s


def is_valid(schedule, *, activation_caps=None) -> bool:
    try:
        validate(schedule, activation_caps=activation_caps)
    except ScheduleError:
        return False
    return True


# Against the named schedules


@pytest.mark.parametrize("first", range(0, 60, 15))
def test_auto_never_loses_to_a_named_schedule_that_fits_and_wins_half_of_the_unequal_cases(first):
    unequal = won = 0
    for seed in range(first, first + 15):
        profile = random_profile(seed)
        found, named_s = search(profile.setting, named), best_named_s(profile.setting)

        validate(found.schedule, activation_caps=profile.setting.activation_caps)
        assert found.makespan_s == makespan_s(found.schedule, profile.setting)
        assert found.bound_s * (1 - CLOSE) <= found.makespan_s <= named_s
        unequal += profile.is_unequal
        won += profile.is_unequal and found.makespan_s < named_s * (1 - 1e-6)

    assert won >= unequal / 2


def test_the_same_setting_gives_the_same_schedule():
    setting = random_profile(3).setting

    assert render(build(ScheduleName.AUTO, setting)) == render(build(ScheduleName.AUTO, setting))


def test_auto_gives_whole_backwards_where_halves_gain_nothing():
    costs = equal_shares(2, forward_s=1.0, input_s=1.0, weight_s=1.0)
    setting = Setting(num_ranks=2, num_micro_batches=1, num_chunks=1, costs=costs)

    schedule = build(ScheduleName.AUTO, setting)

    # W of rank 1 is done while rank 0 computes its gradient; rank 0's halves may as well be one
    assert render(schedule) == "F0 B0\nF0 I0 W0\n"


def test_auto_needs_neither_costs_nor_caps():
    setting = Setting(num_ranks=4, num_micro_batches=8)

    assert search(setting, named).makespan_s <= best_named_s(setting)


# Choices


def test_one_chunk_means_one_stage_on_each_rank_or_one_from_either_end():
    for seed in range(10):
        setting = replace(random_profile(seed).setting, num_chunks=1)

        there = straight(setting.num_ranks)
        assert build(ScheduleName.AUTO, setting).routes in {(there,), (there, there[::-1])}


def test_three_chunks_mean_a_route_that_passes_each_rank_three_times():
    setting = replace(random_profile(2).setting, num_chunks=3)

    assert build(ScheduleName.AUTO, setting).routes in {
        (folded(setting.num_ranks, 2),),
        (looped(setting.num_ranks, 3),),
    }


def test_a_route_that_the_layers_do_not_do_for_is_left_out():
    equal = equal_shares(4)

    def four_layers(routes: tuple[Route, ...]) -> Costs:
        if len(routes[0]) > 4:
            raise ScheduleError("4 layers do not make 8 stages")
        return equal(routes)

    setting = Setting(num_ranks=4, num_micro_batches=6, costs=four_layers)

    assert build(ScheduleName.AUTO, setting).num_stages == 4


@pytest.mark.parametrize("cap", [0.2, 0.99])
def test_caps_that_nothing_keeps_within_are_refused_with_the_smallest_that_would_do(cap):
    message = rf"no schedule keeps within a memory cap of {cap} micro-batches; the smallest that would do is 1"
    with pytest.raises(ScheduleError, match=message):
        build(ScheduleName.AUTO, Setting(num_ranks=3, num_micro_batches=4, activation_caps=(2.0, cap, 2.0)))


@pytest.mark.parametrize("num_chunks", [None, 1, 2])
def test_the_smallest_cap_does(num_chunks):
    setting = Setting(num_ranks=4, num_micro_batches=6, num_chunks=num_chunks, activation_caps=(1.0,) * 4)

    assert peak_activations(build(ScheduleName.AUTO, setting)) == (1, 1, 1, 1)


positive = st.floats(0.05, 20)


def ahead(costs: CostModel, share: float) -> CostModel:
    """Let a share of each way back need no gradient."""

    def model(routes: tuple[Route, ...]) -> Costs:
        found = costs(routes)
        return replace(found, ahead_s=tuple(share * each for each in found.input_s))

    return model


@st.composite
def any_setting(draw) -> Setting:
    p, m = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    forward_s, input_s, weight_s = (draw(st.lists(positive, min_size=p, max_size=p)) for _ in range(3))
    caps = draw(st.none() | st.lists(st.floats(1, 2 * p), min_size=p, max_size=p).map(tuple))
    link = Link(latency_s=draw(st.floats(0, 2)), message_s=draw(st.floats(0, 2)))
    costs = shares(forward_s=forward_s, input_s=input_s, weight_s=weight_s, link=link)
    return Setting(
        num_ranks=p,
        num_micro_batches=m,
        num_chunks=draw(st.sampled_from([None, 1, 2, 3])),
        costs=ahead(costs, draw(st.sampled_from([0.0, 0.5, 1.0]))),
        activation_caps=caps,
    )


@given(setting=any_setting())
@settings(max_examples=examples(40), deadline=None)
def test_what_auto_gives_is_valid_whatever_it_is_asked_for(setting):
    found = search(setting, named)

    validate(found.schedule, activation_caps=setting.activation_caps)
    assert found.bound_s * (1 - CLOSE) <= found.makespan_s


# Against exact solutions


def whole_numbers(seed: int, num_chunks: int) -> Setting:
    draw = random.Random(seed)
    p, m = draw.randint(2, 3), draw.randint(2, 4)
    is_unequal = draw.random() < 0.7

    def seconds() -> list[int]:
        times = [num_chunks * round(20 * 4 ** draw.random()) for _ in range(p)]
        return times if is_unequal else times[:1] * p

    costs = shares(
        forward_s=seconds(),
        input_s=seconds(),
        weight_s=seconds(),
        link=Link(latency_s=draw.randint(0, 4), message_s=draw.randint(0, 2)),
    )
    return Setting(
        num_ranks=p,
        num_micro_batches=m,
        num_chunks=num_chunks,
        costs=ahead(costs, seed % 2),
        activation_caps=tuple(float(draw.randint(1, 2 * p)) for _ in range(p)),
    )


@pytest.mark.parametrize(("num_chunks", "num_exact"), [(1, 24), (2, 22)])
def test_small_cases_are_solved_exactly_but_for_a_few_and_bounds_hold(num_chunks, num_exact):
    exact = 0
    for seed in range(24):
        setting = whole_numbers(seed, num_chunks)
        found = search(setting, lambda _: ())  # without help
        least = min(least_makespan(job_shop_for(routing, setting)) for routing in one_copy_routings(setting))

        assert found.bound_s - 1e-6 <= least <= found.makespan_s + 1e-6
        exact += found.makespan_s <= least + 1e-6

    assert exact >= num_exact


# Lower bounds


def test_a_machine_that_may_interrupt_does_the_job_with_the_longest_tail_first():
    # From 0 to 2 the first, which waits from 2 to 5 for the second, ends at 7 and takes 1 more;
    # the second ends at 5 and takes 6 more.
    assert preemptive_makespan([(0.0, 4.0, 1.0), (2.0, 3.0, 6.0)]) == 11.0


def test_the_bound_of_a_straight_route_is_what_its_busiest_rank_must_wait_work_and_be_waited_for():
    costs = shares(forward_s=[1, 4, 1], input_s=[1, 4, 1], weight_s=[1, 4, 1], link=Link(latency_s=0.5))
    setting = Setting(num_ranks=3, num_micro_batches=5, num_chunks=1, costs=costs)

    # F of rank 0 and a message; 5 x 12 of rank 1, the last W of which nobody waits for
    assert lower_bound_s(setting) == 1 + 0.5 + 60


def test_the_bound_of_one_micro_batch_at_a_time_is_the_sum_of_all():
    costs = equal_shares(3, forward_s=1.0, input_s=2.0, weight_s=3.0, link=Link(latency_s=0.5))
    setting = Setting(num_ranks=3, num_micro_batches=4, num_chunks=1, costs=costs, activation_caps=(1.0,) * 3)

    # There and back on three ranks, four messages, W of rank 0, four times
    assert lower_bound_s(setting) == 4 * (3 * 1 + 3 * 2 + 4 * 0.5 + 3)
    assert makespan_s(build(ScheduleName.AUTO, setting), setting) == 56


@pytest.mark.parametrize("seed", range(30))
def test_no_named_schedule_is_below_the_bound(seed):
    setting = random_profile(seed).setting
    bound_s = lower_bound_s(setting, copies=2)

    for schedule in named(setting):
        if is_valid(schedule, activation_caps=setting.activation_caps):
            assert makespan_s(schedule, setting) >= bound_s * (1 - CLOSE)


# The parts that search


@st.composite
def shop_and_priorities(draw) -> tuple[JobShop, Setting, tuple, list[float]]:
    setting = draw(any_setting())
    routing = draw(st.sampled_from([*one_copy_routings(setting), *two_copy_routings(setting)]))
    shop = job_shop_for(routing, setting)
    shuffle = random.Random(draw(st.integers(0, 10**9)))
    return shop, setting, routing, [shuffle.random() for _ in range(shop.num_jobs)]


@given(case=shop_and_priorities(), patience=st.floats(0, 1), forth=st.booleans())
@settings(deadline=None)
def test_whatever_the_priorities_passes_either_way_keep_caps_and_never_deadlock(case, patience, forth):
    shop, setting, routing, priority = case
    side = shop if forth else shop.mirrored()

    made = list_schedule(side, priority, Patience(forward=patience, input=patience, weight=patience))
    orders = made.orders if forth else shop.mirror(made.orders)

    validate(schedule_of(shop, orders, *routing), activation_caps=setting.activation_caps)


@given(case=shop_and_priorities())
@settings(deadline=None)
def test_what_flows_is_what_validate_accepts(case):
    shop, _, routing, priority = case
    eager = Patience(forward=1.0, input=1.0, weight=1.0)

    orders = list_schedule(shop, priority, eager, sends_ahead=math.inf).orders

    assert shop.flows(orders) == is_valid(schedule_of(shop, orders, *routing))


@given(case=shop_and_priorities())
@settings(deadline=None)
def test_a_shops_clock_is_the_simulators(case):
    shop, setting, routing, priority = case
    orders = list_schedule(shop, priority, Patience()).orders
    schedule = schedule_of(shop, orders, *routing)

    started = shop.play(orders)

    simulated = simulate(schedule, setting.costs_of(*schedule.routes))
    assert [tuple(started[job] for job in order) for order in orders] == list(simulated.started_s)
    assert shop.makespan(started) == simulated.makespan_s
    assert orders_of(shop, schedule) == orders


@given(case=shop_and_priorities())
@settings(deadline=None)
def test_climbing_makes_nothing_longer_and_keeps_what_passes_kept(case):
    shop, setting, routing, priority = case
    orders = list_schedule(shop, priority, Patience(forward=1.0, input=1.0, weight=1.0)).orders

    better = local_search(shop, orders, tries=40)

    assert length(shop, better) <= length(shop, orders)
    validate(schedule_of(shop, better, *routing), activation_caps=setting.activation_caps)


@given(case=shop_and_priorities())
@settings(deadline=None)
def test_backwards_made_whole_make_no_step_longer(case):
    shop, setting, routing, priority = case
    orders = list_schedule(shop, priority, Patience()).orders

    schedule = schedule_of(shop, orders, *routing, fused(shop, orders))

    validate(schedule, activation_caps=setting.activation_caps)
    assert makespan_s(schedule, setting) <= length(shop, orders) * (1 + 1e-9)


def length(shop: JobShop, orders: Orders) -> float:
    started = shop.play(orders)
    assert started is not None
    return shop.makespan(started)


def test_climbing_swaps_what_stands_in_the_way():
    costs = shares(forward_s=[1, 1], input_s=[1, 1], weight_s=[3, 3])
    setting = Setting(num_ranks=2, num_micro_batches=2, num_chunks=1, costs=costs)
    routing = one_copy_routings(setting)[0]
    shop = job_shop_for(routing, setting)
    late = parse("F0 F1 I0 W0 I1 W1\nF0 I0 W0 F1 I1 W1\n")

    better = local_search(shop, orders_of(shop, late), tries=50)

    assert length(shop, orders_of(shop, late)) == 12
    assert length(shop, better) == lower_bound_s(setting) == 11
