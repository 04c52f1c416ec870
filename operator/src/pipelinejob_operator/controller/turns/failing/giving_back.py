"""A gang that cannot come together gives everything back and tries again later: a partial gang holds nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pipelinejob.spec.reported.conditions import State
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.admission.refusals import standing_refusals, with_refusals
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Rank, parse_time
from pipelinejob_operator.objects.pods import StagePod


def take_back(turn: Turn, reason: str, message: str, settings: ControllerSettings) -> Turn:
    """Release the gang's room and try again later: a partial gang holds nothing."""
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


def say_left_out(turn: Turn) -> str:
    """Say which nodes are left out from now on, as the end of a sentence; nothing if there are none."""
    standing = standing_refusals(turn.status, turn.now)
    if not standing:
        return ""
    more = f" and {len(standing) - 1} more" if len(standing) > 1 else ""
    return f"; node {standing[-1].node}{more} will be left out until {standing[-1].until}"


def describe_misfits(misfits: Sequence[str]) -> str:
    """Say which of the gang's pods, as they were admitted, do not fit their nodes as these are now."""
    more = f", nor do {len(misfits) - 1} more" if len(misfits) > 1 else ""
    return f"as admitted, {misfits[0]}{more}; the gang was taken back and is placed again by what it asks for now"


def leave_out(turn: Turn, refused: Mapping[str, str], settings: ControllerSettings) -> Turn:
    """Remember nodes that refused, by what they said, for those that choose the next place."""
    if not refused:
        return turn
    return replace(turn, status=with_refusals(turn.status, refused, now=turn.now, for_s=settings.node_refusal_s))


def unbinding_nodes(turn: Turn, unbound: Sequence[StagePod]) -> dict[str, str]:
    """Name the nodes onto which the scheduler would not let pods that were pinned there, with its words."""
    nodes = {Rank(stage.replica, stage.stage): stage.node or "" for stage in turn.status.stages}
    last_first = sorted(unbound, key=lambda pod: pod.rank, reverse=True)
    return {nodes[pod.rank]: f"{pod.rank}: {pod.unschedulable}" for pod in last_first if pod.unschedulable}


def since_release_s(status: PipelineJobStatus, now: datetime) -> float:
    """Return the seconds since the gang was let go; 0 if it was not."""
    released = status.released_time
    return (now - parse_time(released)).total_seconds() if released else 0.0
