"""When a job is to be looked at again if no event does so before: deadlines, back-offs, and what no event tells of."""

from collections.abc import Iterator, Mapping
from datetime import timedelta

from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.reported.conditions import UP, ConditionType, State
from pipelinejob_operator.admission.line.queueing import (
    FAR_BACK,
    NEVER_FITS,
    NO_ROOM,
    NOT_ITS_TURN,
    PREEMPTED,
    PREEMPTING,
)
from pipelinejob_operator.controller.actions import outlived_s
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns.failing.giving_back import since_release_s
from pipelinejob_operator.controller.turns.failing.starting import Hindrance
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Rank, condition, parse_time
from pipelinejob_operator.objects.pods import StagePod

SOON_S = 1.0  # for what no event tells of and usually takes moments
# Reasons to wait that the admission loop watches: it wakes the job when anything about them
# changes.
_WATCHED = frozenset({NO_ROOM, NOT_ITS_TURN, FAR_BACK, NEVER_FITS, PREEMPTED, PREEMPTING})
_HEARING_SHARE = 0.25  # of the time since a gang was let go passes between two questions why it is not up


def next_looks(turn: Turn, observed: Observed, settings: ControllerSettings) -> Iterator[float]:
    spec, status = observed.job.spec, turn.status
    if spec is None:
        return
    if turn.look_again_s is not None:
        yield turn.look_again_s
    yield from (left for pod in observed.pods if (left := outlived_s(pod, turn.now, settings)))
    if is_finished(turn):
        if spec.ttl_seconds_after_finished is not None:
            yield max(0.0, seconds_to_live(turn, spec.ttl_seconds_after_finished))
        return
    if spec.active_deadline_seconds is not None and status.start_time is not None:
        yield max(0.0, seconds_to_deadline(turn, spec, default=0.0))
    if status.state is State.SUSPENDED:
        return
    if backing_off_s(turn) > 0:
        yield backing_off_s(turn)
    yield from _by_state(turn, observed, settings)


def _by_state(turn: Turn, observed: Observed, settings: ControllerSettings) -> Iterator[float]:
    if turn.status.state in UP:
        yield settings.progress_interval_s
    elif observed.in_the_way:  # of whose end no event tells
        yield SOON_S
    elif turn.look_again_s is None and not _is_watched(turn, observed):
        yield settings.waiting_retry_s


def _is_watched(turn: Turn, observed: Observed) -> bool:
    """Whether the admission loop will wake the job as soon as anything changes for it."""
    spec, placed = observed.job.spec, condition(turn.status, ConditionType.PLACED)
    if turn.status.state is not State.WAITING or placed is None or spec is None:
        return False
    return placed.reason in _WATCHED and spec.scheduling.provisioning is None


def seconds_to_next_question(
    turn: Turn, current: Mapping[Rank, StagePod], hindrance: Hindrance | None, settings: ControllerSettings
) -> float:
    """When to look again at a gang that is not up: at a limit of its time, or to ask again what its events say."""
    since_s = since_release_s(turn.status, turn.now)
    looks = [settings.start_timeout_s]
    if any(pod.node is not None and not pod.is_ready for pod in current.values()):
        looks.append(max(settings.hearing_interval_s, _HEARING_SHARE * since_s))
    if any(pod.node is None for pod in current.values()):
        looks.append(settings.gang_timeout_s - since_s)
    if hindrance is not None and hindrance.since is not None:
        looks.append(hindrance.limit_s - (turn.now - hindrance.since).total_seconds())
    return max(0.0, min(looks))


def seconds_to_live(turn: Turn, ttl_s: int) -> float:
    """Return the seconds until a finished job is deleted."""
    assert turn.status.completion_time is not None, "a finished job has ended at some time"
    return (parse_time(turn.status.completion_time) + timedelta(seconds=ttl_s) - turn.now).total_seconds()


def seconds_to_deadline(turn: Turn, spec: PipelineJobSpec, *, default: float) -> float:
    if spec.active_deadline_seconds is None or turn.status.start_time is None:
        return default
    end = parse_time(turn.status.start_time) + timedelta(seconds=spec.active_deadline_seconds)
    return (end - turn.now).total_seconds()


def backing_off_s(turn: Turn) -> float:
    until = turn.status.not_before
    return (parse_time(until) - turn.now).total_seconds() if until else 0.0


def is_finished(turn: Turn) -> bool:
    return turn.status.state in {State.SUCCEEDED, State.FAILED}
