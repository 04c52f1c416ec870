"""PipeDream and PipeDream-2BW: weights change while micro-batches are in flight, so that nobody waits for a flush.

Both play 1F1B's order and update after every A backwards (`Setting.update_interval`). An action
names the weight version that it uses; version t is what t updates of this step have made, 0 what
the step begins with. A step is what lies between two flushes: at its end the pipeline drains, so
that a checkpoint can be made and the losses summed. The longer the step, the less that costs: the
bubble is (p-1)/(m+p-1) of it, none in between.
"""

from collections.abc import Mapping

from pipelinejob.schedules.actions import (
    Action,
    ActionKind,
    O,
    RankActions,
    Schedule,
    ScheduleError,
    one_route,
    straight,
)
from pipelinejob.schedules.makers.flush import one_f_one_b
from pipelinejob.schedules.setting import Setting


def pipedream(setting: Setting) -> Schedule:
    """Update after each micro-batch, stashing weights: PipeDream (Narayanan et al. 2019, SOSP, arXiv 1806.03377).

        rank 0  F0@0 F1@0 B0@0 O1 F2@1 B1@0 O2 F3@2 B2@1 O3 B3@2 O4
        rank 1  F0@0 B0@0 O1 F1@1 B1@1 O2 F2@2 B2@2 O3 F3@3 B3@3 O4

    A forward uses the newest weights of its rank, and its backward the same ones, which the rank
    must keep until then: p-i versions on rank i. So a gradient is p-1-i updates late there:

        w_i(t+1) = w_i(t) - rate * gradient_i(w_0(t-p+1), w_1(t-p+2), ..., w_{p-1}(t))

    With vertical sync (section 3.3) all ranks use the version that rank 0 used, w(t-p+1), and keep
    p versions or fewer.
    """
    interval = setting.update_interval or 1
    _check_interval(interval, setting)
    lists = one_f_one_b(setting.num_ranks, setting.num_micro_batches).ranks
    ranks = [_updating(actions, interval) for actions in lists]
    if setting.vertical_sync:
        used = {a.micro_batch: a.version for a in ranks[0] if a.kind is ActionKind.FORWARD}
        ranks = [_using(actions, used) for actions in ranks]
    return one_route(straight(setting.num_ranks), ranks, setting.num_micro_batches)


def pipedream_2bw(setting: Setting) -> Schedule:
    """Update after each batch of A >= p micro-batches, by gradients one batch late: PipeDream-2BW.

    Narayanan et al. 2021 (ICML, arXiv 2006.09503). The micro-batches of batch t use version max(0,
    t-1), so that two versions are kept on every rank however deep the pipeline, and

        w(t+1) = w(t) - rate * gradient(w(t-1))
    """
    interval = setting.update_interval or setting.num_ranks
    _check_interval(interval, setting)
    if interval < setting.num_ranks:
        raise ScheduleError(
            f"updates of {interval} micro-batches on {setting.num_ranks} ranks need more than two weight versions;"
            f" gather at least {setting.num_ranks}, or use PipeDream"
        )
    used = {k: max(0, k // interval - 1) for k in range(setting.num_micro_batches)}
    lists = one_f_one_b(setting.num_ranks, setting.num_micro_batches).ranks
    ranks = [_using(_updating(actions, interval), used) for actions in lists]
    return one_route(straight(setting.num_ranks), ranks, setting.num_micro_batches)


def _check_interval(interval: int, setting: Setting) -> None:
    if interval < 1:
        raise ScheduleError(f"updates of {interval} micro-batches cannot be; gather at least 1")
    if interval > setting.num_micro_batches:
        raise ScheduleError(
            f"updates of {interval} micro-batches do not fit into a step of {setting.num_micro_batches};"
            f" gather at most {setting.num_micro_batches}, or run at least {interval} of them"
        )


def _updating(actions: RankActions, interval: int) -> RankActions:
    """Put an update after every `interval` backwards and after the last.

    Forwards use the newest version.
    """
    result: list[Action] = []
    used: dict[int, int] = {}
    newest = gathered = 0
    backwards = sum(action.kind is ActionKind.BACKWARD for action in actions)
    for action in actions:
        version = used.setdefault(action.micro_batch, newest)
        result.append(action._replace(version=version))
        if action.kind is ActionKind.BACKWARD:
            gathered += 1
            if gathered % interval == 0 or gathered == backwards:
                newest += 1
                result.append(O(newest))
    return tuple(result)


def _using(actions: RankActions, used: Mapping[int, int | None]) -> RankActions:
    """Set the weight version of every action to the one given for its micro-batch."""
    return tuple(
        action if action.kind is ActionKind.UPDATE else action._replace(version=used[action.micro_batch])
        for action in actions
    )
