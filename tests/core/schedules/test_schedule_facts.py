"""What the description of a schedule says is what its lists show."""

import pytest

from pipelinejob.schedules.actions import ScheduleError, folded, looped, straight
from pipelinejob.schedules.costs import equal_shares
from pipelinejob.schedules.families import FAMILIES
from pipelinejob.schedules.family import RouteShape, Share, Sizes, Updates
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.simulation.simulate import simulate

MADE = [family for family in FAMILIES.values() if family.make is not None]
TRAINING = [family for family in MADE if family.trains]
ROUTES = {
    RouteShape.STRAIGHT: lambda p, _: (straight(p),),
    RouteShape.LOOPED: lambda p, chunks: (looped(p, chunks),),
    RouteShape.FOLDED: lambda p, chunks: (folded(p, chunks - 1),),
    RouteShape.BOTH_WAYS: lambda p, _: (straight(p), straight(p)[::-1]),
}
# Whose bubble is as the papers have it with whole backwards twice as long as forwards, links at no
# cost.
EXACTLY_FILLED = [
    ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B, ScheduleName.INTERLEAVED, ScheduleName.LOOPED_BFS, ScheduleName.ZB_H1,
    ScheduleName.ZB_H2, ScheduleName.ZB_2P, ScheduleName.ZB_V, ScheduleName.PIPEDREAM, ScheduleName.PIPEDREAM_2BW,
]  # fmt: skip


def named(family):
    return family.name.value


def made(family, p, m):
    return family.make(Setting(num_ranks=p, num_micro_batches=m))


@pytest.mark.parametrize("family", MADE, ids=named)
def test_a_list_takes_the_route_and_the_chunks_that_are_stated(family):
    schedule = made(family, 4, 8)

    assert schedule.routes == ROUTES[family.route](4, family.usual_chunks)


@pytest.mark.parametrize("family", MADE, ids=named)
def test_a_list_has_the_backward_passes_and_updates_that_are_stated(family):
    schedule = made(family, 4, 8)

    assert (schedule.is_split, schedule.is_forward_only) == (family.is_split, not family.trains)
    assert schedule.is_asynchronous == family.is_asynchronous
    if family.updates is not None:
        updates = 8 if family.updates is Updates.EACH_MICRO_BATCH else 8 // 4
        assert [sum(str(action)[0] == "O" for action in actions) for actions in schedule.ranks] == [updates] * 4


@pytest.mark.parametrize("family", MADE, ids=named)
def test_both_ways_need_an_even_number_of_ranks_and_no_other_route_does(family):
    try:
        made(family, 3, 8)
    except ScheduleError:
        assert family.route is RouteShape.BOTH_WAYS
    else:
        assert family.route is not RouteShape.BOTH_WAYS


@pytest.mark.parametrize("family", TRAINING, ids=named)
@pytest.mark.parametrize("p", [4, 6, 8])
def test_the_fullest_rank_of_a_full_pipeline_holds_what_is_stated(family, p):
    peaks = peak_activations(made(family, p, 4 * p))

    assert max(peaks) == pytest.approx(family.peak(Sizes(p, 4 * p, family.usual_chunks)))


@pytest.mark.parametrize("family", TRAINING, ids=named)
@pytest.mark.parametrize(("p", "m"), [(2, 1), (2, 6), (4, 3), (4, 8), (4, 10), (6, 12)])
def test_what_a_rank_holds_is_exact_where_it_is_stated(family, p, m):
    if family.updates is Updates.EACH_BATCH:
        m = max(m, p)  # a step holds an update
    stated = [family.held(Sizes(p, m, family.usual_chunks), rank) for rank in range(p)]

    for held, peak in zip(stated, peak_activations(made(family, p, m)), strict=True):
        assert held is None or held == pytest.approx(peak)


@pytest.mark.parametrize("name", EXACTLY_FILLED)
def test_a_step_is_longer_by_what_is_stated_for_each_further_rank(name):
    family = FAMILIES[name]
    schedule = made(family, 8, 32)

    makespan_s = simulate(schedule, equal_shares(8)(schedule.routes)).makespan_s

    assert makespan_s == pytest.approx(32 * 3 + 7 * family.filling(Share(1, 3), family.usual_chunks))
