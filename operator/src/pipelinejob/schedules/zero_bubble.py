"""The zero-bubble schedules with one stage a rank: Qi et al., ICLR 2024, arXiv 2401.10241.

They do the backward pass in halves: the input gradient `I`, which the previous stage waits for, at once, and the weight
gradients `W`, which nobody waits for, where the rank would else stand idle.
"""

from pipelinejob.schedules.actions import F, I, RankActions, Schedule, W, one_route, straight
from pipelinejob.schedules.list_scheduler import TASTES, schedule_for
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.validate import is_valid
from pipelinejob.simulate import simulate


def zb_h1(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Delay weight gradients, within 1F1B's memory.

        rank 0  F0 F1 F2 -- -- I0 W0 F3 I1 W1 F4 I2 W2 I3 W3 I4 W4
        rank 1  -- F0 F1 -- I0 F2 I1 W0 F3 I2 W1 F4 I3 W2 I4 W3 W4
        rank 2  -- -- F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 F4 I4 W2 W3 W4

    Rank i runs p-1-i forwards ahead, as in 1F1B, and leaves weight gradients i micro-batches behind, so that every rank
    holds min(m, p) micro-batches. The bubble is (p-1)(F+I-W), a third of 1F1B's where F, I and W are alike.
    """
    ranks = [_delayed(num_ranks - 1 - rank, rank, num_micro_batches) for rank in range(num_ranks)]
    return one_route(straight(num_ranks), ranks, num_micro_batches)


def zb_h2(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Fill the pipeline without a bubble, for twice the memory.

        rank 0  F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 F6 I2 W2 I3 W3 I4 W4 I5 W5 I6 W6
        rank 1  -- F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 F6 I4 W2 I5 W3 I6 W4 W5 W6
        rank 2  -- -- F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 F6 I6 W2 W3 W4 W5 W6

    Twice as far ahead as ZB-H1 and twice as far behind: every rank holds min(m, 2p-1) micro-batches. By the longest
    span of a rank the bubble is (p-1)(F+I-2W), none where F, I and W are alike: a rank that begins later ends later,
    which costs nothing where the next step needs no barrier.
    """
    ranks = [_delayed(2 * (num_ranks - 1 - rank), 2 * rank, num_micro_batches) for rank in range(num_ranks)]
    return one_route(straight(num_ranks), ranks, num_micro_batches)


def _delayed(ahead: int, behind: int, num_micro_batches: int) -> RankActions:
    """Alternate F and I with `ahead` forwards before them; each W comes `behind` micro-batches after its I."""
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
    """Give the best list for the costs within p micro-batches on each rank, by its longest span: the paper's ZB-1p.

    Caps of the setting count as well, where they are lower.
    """
    return _best_for_costs(setting, zb_h1(setting.num_ranks, setting.num_micro_batches), setting.num_ranks)


def zb_2p(setting: Setting) -> Schedule:
    """Give the best list for the costs within 2p micro-batches on each rank, by its longest span: the paper's ZB-2p."""
    return _best_for_costs(setting, zb_h2(setting.num_ranks, setting.num_micro_batches), 2 * setting.num_ranks)


def _best_for_costs(setting: Setting, handmade: Schedule, most: int) -> Schedule:
    route = straight(setting.num_ranks)
    costs = setting.costs_of(route)
    caps = [max(1, int(min(most, cap))) for cap in setting.activation_caps or (most,) * setting.num_ranks]
    fitting = all(peak <= cap for peak, cap in zip(peak_activations(handmade), caps, strict=True))
    candidates = [handmade] if fitting else []
    for taste in TASTES:
        made = schedule_for(route, setting.num_micro_batches, costs, caps, taste)
        if made is not None and is_valid(made):
            candidates.append(made)
    return min(candidates, key=lambda schedule: simulate(schedule, costs).span_bubble_rate)
