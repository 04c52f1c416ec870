"""The zero-bubble schedules with one stage a rank: Qi et al., ICLR 2024, arXiv 2401.10241.

They do the backward pass in halves: the input gradient `I`, which the previous stage waits for, at
once, and the weight gradients `W`, which nobody waits for, where the rank would else stand idle.
"""

from collections.abc import Callable
from itertools import product

from pipelinejob.schedules.actions import F, I, RankActions, Schedule, ScheduleError, W, one_route, straight
from pipelinejob.schedules.deadlock import RECEIVES_AHEAD
from pipelinejob.schedules.job_shop.job_shop import JobShop, Orders, job_shop_of
from pipelinejob.schedules.job_shop.list_scheduler import PassSeries, Patience, passes
from pipelinejob.schedules.job_shop.orders import orders_of, schedule_of
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.timetable import NEVER

KEPT_FOR_WEIGHT = 32 / 66
"""The part of an activation that ranks keep between `I` and `W` in the paper."""

_SERIES = tuple(
    PassSeries(
        inputs_first=True,
        forth=Patience(forward=0.01, input=0.1, weight=0.1),
        back=Patience(forward=0.1, weight=weight),
        weights_ahead=ahead,
        num_passes=3,
        sends_ahead=sends_ahead,
    )
    for ahead, (weight, sends_ahead) in product(
        (0.0, 1.0), ((0.1, RECEIVES_AHEAD), (0.1, NEVER), (0.5, NEVER), (1.5, NEVER))
    )
)


def zb_h1(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Delay weight gradients, within 1F1B's memory.

        rank 0  F0 F1 F2 -- -- I0 W0 F3 I1 W1 F4 I2 W2 I3 W3 I4 W4
        rank 1  -- F0 F1 -- I0 F2 I1 W0 F3 I2 W1 F4 I3 W2 I4 W3 W4
        rank 2  -- -- F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 F4 I4 W2 W3 W4

    Rank i runs p-1-i forwards ahead, as in 1F1B, and leaves weight gradients i micro-batches
    behind, so that every rank holds min(m, p) micro-batches. The bubble is (p-1)(F+I-W), a third
    of 1F1B's where F, I and W are alike.
    """
    ranks = [_delayed(num_ranks - 1 - rank, rank, num_micro_batches) for rank in range(num_ranks)]
    return one_route(straight(num_ranks), ranks, num_micro_batches)


def zb_h2(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Fill the pipeline without a bubble, for twice the memory.

        rank 0  F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 F6 I2 W2 I3 W3 I4 W4 I5 W5 I6 W6
        rank 1  -- F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 F6 I4 W2 I5 W3 I6 W4 W5 W6
        rank 2  -- -- F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 F6 I6 W2 W3 W4 W5 W6

    Twice as far ahead as ZB-H1 and twice as far behind: every rank holds min(m, 2p-1)
    micro-batches. By the longest span of a rank the bubble is (p-1)(F+I-2W), none where F, I and W
    are alike: a rank that begins later ends later, which costs nothing where the next step needs
    no barrier.
    """
    ranks = [_delayed(2 * (num_ranks - 1 - rank), 2 * rank, num_micro_batches) for rank in range(num_ranks)]
    return one_route(straight(num_ranks), ranks, num_micro_batches)


def _delayed(ahead: int, behind: int, num_micro_batches: int) -> RankActions:
    """Alternate F and I with `ahead` forwards before them.

    Each W comes `behind` micro-batches after its I.
    """
    ahead = min(ahead, num_micro_batches)
    actions = list(map(F, range(ahead)))
    for k in range(num_micro_batches):
        if k + ahead < num_micro_batches:
            actions.append(F(k + ahead))
        actions.append(I(k))
        if k >= behind:
            actions.append(W(k - behind))
    actions += map(W, range(max(0, num_micro_batches - behind), num_micro_batches))
    return tuple(actions)


def zb_1p(setting: Setting) -> Schedule:
    """Place split backwards by their costs, in the memory of p micro-batches on each rank: the paper's ZB-1p.

    Caps of the setting hold too. Raises ScheduleError where one has no room for a single
    micro-batch.
    """
    return _least_span(setting, zb_h1, setting.num_ranks, kept_for_weight=1.0)


def zb_2p(setting: Setting, *, kept_for_weight: float = KEPT_FOR_WEIGHT) -> Schedule:
    """Place split backwards by their costs, in the memory of 2p micro-batches on each rank: the paper's ZB-2p.

    `kept_for_weight` is the part of an activation that counts between `I` and `W`. The paper's
    rates need it: if all of it counted, the last rank would have done m-2p weight gradients before
    its last input gradient, for which the first rank then waits; with p = 8, m = 24 and the 6.2B
    model's costs that is a bubble of 0.061 instead of 0.003.

    Caps of the setting, where there are any, hold as `validate` has them: there all of it counts.
    Raises ScheduleError where one has no room for a single micro-batch.
    """
    kept = kept_for_weight if setting.activation_caps is None else 1.0
    return _least_span(setting, zb_h2, 2 * setting.num_ranks, kept_for_weight=kept)


def _least_span(
    setting: Setting, handmade: Callable[[int, int], Schedule], most: int, *, kept_for_weight: float
) -> Schedule:
    """Return the list whose longest span is shortest: one made for the costs, or the handmade one where that fits."""
    caps = setting.activation_caps
    if caps is not None and min(caps) < 1:
        raise ScheduleError(f"a memory cap of {min(caps):g} has no room for a micro-batch; the least that does is 1")
    routes, route_of = (straight(setting.num_ranks),), (0,) * setting.num_micro_batches
    shop = job_shop_of(
        routes,
        route_of,
        setting.costs_of(*routes),
        caps=[min(most, cap) for cap in caps or [most] * setting.num_ranks],
        kept_for_weight=kept_for_weight,
    )
    candidates = [each.orders for each in passes(shop, _SERIES, end_as_begun=True)]
    by_hand = handmade(setting.num_ranks, setting.num_micro_batches)
    if caps is None or all(peak <= cap for peak, cap in zip(peak_activations(by_hand), caps, strict=True)):
        candidates.append(orders_of(shop, by_hand))
    ranked = sorted(candidates, key=lambda orders: _longest_span_s(shop, orders))
    return next(schedule_of(shop, orders, routes, route_of) for orders in ranked if shop.flows(orders))


def _longest_span_s(shop: JobShop, orders: Orders) -> float:
    started = shop.play(orders)
    assert started is not None, "these orders can be played where sends do not wait"
    return max(started[order[-1]] + shop.seconds[order[-1]] - started[order[0]] for order in orders)
