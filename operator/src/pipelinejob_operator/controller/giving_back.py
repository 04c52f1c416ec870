"""A gang that cannot come together gives everything back and tries again later: a partial gang holds nothing."""

from collections.abc import Sequence

from pipelinejob.status import State
from pipelinejob_operator.controller import transitions
from pipelinejob_operator.controller.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import parse_time
from pipelinejob_operator.objects.pods import StagePod


def take_back(turn: Turn, reason: str, message: str, settings: ControllerSettings) -> Turn:
    """Give the gang's room back and try again later: a partial gang holds nothing."""
    backoff_s = min(settings.max_restart_backoff_s, settings.waiting_retry_s * 2.0 ** min(turn.status.attempt - 1, 10))
    turn = turn.told("Waiting", message, warning=True)
    return transitions.give_up(turn, state=State.WAITING, reason=reason, message=message, backoff_s=backoff_s)


def why_unbound(unbound: Sequence[StagePod], num_ranks: int, settings: ControllerSettings) -> str:
    """Say which of the gang's pods the scheduler found no place for, in its own words."""
    words = next((pod.unschedulable for pod in unbound if pod.unschedulable), "the scheduler gave no reason")
    return (
        f"{len(unbound)} of {num_ranks} pods were not bound within {settings.gang_timeout_s:.0f} s, "
        f"so the whole gang was taken back and waits again; pod {unbound[0].name}: {words}"
    )


def since_release_s(turn: Turn) -> float:
    """Give the seconds since the gang was let go; 0 if it was not."""
    released = turn.status.released_time
    return (turn.now - parse_time(released)).total_seconds() if released else 0.0
