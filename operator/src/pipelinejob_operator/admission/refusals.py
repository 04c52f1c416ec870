"""Nodes that refused a job's pods, and are left out for a time: whatever the cause, the same place is not tried again.

They stand in the job's status, so nobody forgets them: who may not be known by what is written on
pods and nodes (a webhook of the scheduler's, a kubelet without a healthy device) is known by what
it did.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from pipelinejob.spec.reported.waiting import RefusedNode
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.objects.job import format_time, parse_time

MAX_REFUSALS = 64  # of a status; the latest count
_MAX_MESSAGE = 300
_MOST_TIMES = 6  # from 2 minutes to 64


def with_refusals(
    status: PipelineJobStatus, refused: Mapping[str, str], *, now: datetime, for_s: float
) -> PipelineJobStatus:
    """Remember nodes by what they refused with: for so long at first, and for twice as long each further time.

    A node that did not refuse for twice the time that it was left out is forgotten.
    """
    known = {each.node: each for each in status.refused_nodes if not _is_forgotten(each, now, for_s)}
    for node, words in sorted(refused.items()):
        before = known.pop(node, None)
        times = min(before.times + 1, _MOST_TIMES) if before else 1
        until = format_time(now + timedelta(seconds=_left_out_s(times, for_s)))
        known[node] = RefusedNode(node=node, until=until, times=times, message=words[:_MAX_MESSAGE])
    return status.model_copy(update={"refused_nodes": tuple(known.values())[-MAX_REFUSALS:]})


def standing_refusals(status: PipelineJobStatus, now: datetime) -> tuple[RefusedNode, ...]:
    """Return the refusals that count now."""
    return tuple(each for each in status.refused_nodes if parse_time(each.until) > now)


def why_left_out(status: PipelineJobStatus, now: datetime) -> dict[str, str]:
    """Say of each node that the job leaves out why, and until when; as what follows its name."""
    return {
        each.node: f"refused it and is left out until {each.until}: {each.message}"
        for each in standing_refusals(status, now)
    }


def _left_out_s(times: int, for_s: float) -> float:
    return for_s * 2.0 ** (times - 1)


def _is_forgotten(refusal: RefusedNode, now: datetime, for_s: float) -> bool:
    return now > parse_time(refusal.until) + timedelta(seconds=2 * _left_out_s(refusal.times, for_s))
