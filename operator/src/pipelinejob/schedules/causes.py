"""Why a rank waits, told from its list of actions alone, so that planned and measured waits are named alike."""

from collections.abc import Sequence
from enum import StrEnum

from pipelinejob.schedules.actions import Action, ActionKind


class WaitCause(StrEnum):
    """What a rank's idle second was lost to."""

    WARM_UP = "warm-up"  # the pipeline is filling: no gradient has reached this rank yet
    ACTIVATION = "activation"  # in between, for a previous stage's activation
    GRADIENT = "gradient"  # in between, for a next stage's gradient
    SEND = "send"  # for a message to leave
    COOL_DOWN = "cool-down"  # the pipeline is emptying: no forward is left on this rank
    PROCESSOR = "processor"  # in the midst of an action, for one of the processors that ranks share
    BARRIER = "barrier"  # at the end of the step, for the other ranks


def wait_causes(actions: Sequence[Action]) -> tuple[WaitCause, ...]:
    """Name, for each action of a rank, the cause of a wait just before it.

    After the last one every wait is BARRIER.

    Where one wait both ends the filling and starts the emptying (GPipe's in the middle), it counts
    as WARM_UP. Where there are only forwards, just the wait before the first of them fills the
    pipeline.
    """
    backward = [a.kind not in {ActionKind.FORWARD, ActionKind.UPDATE} for a in actions]
    first_backward = backward.index(True) if True in backward else 0
    forwards_left = sum(action.kind is ActionKind.FORWARD for action in actions)
    causes = []
    for position, action in enumerate(actions):
        is_forward = action.kind is ActionKind.FORWARD
        if position <= first_backward:
            causes.append(WaitCause.WARM_UP)
        elif forwards_left == 0:
            causes.append(WaitCause.COOL_DOWN)
        else:
            causes.append(WaitCause.ACTIVATION if is_forward else WaitCause.GRADIENT)
        forwards_left -= is_forward
    return tuple(causes)
