"""Keeps a status small enough to be stored. A rank's sentence and measurements may go; what the job goes on by stays.

etcd takes 1.5 MiB in one request, and spec, metadata and their bookkeeping want their share.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.status import PipelineJobStatus

MAX_STATUS_BYTES = 768 * 1024
MAX_SENTENCES_BYTES = 64 * 1024  # of all ranks together
# What is tried in turn where even that is refused: a large spec leaves less, and etcd may be told
# to take less.
LIMITS = (MAX_STATUS_BYTES, MAX_STATUS_BYTES // 2, 0)

_MEASUREMENTS = ("step", "utilization", "bubble", "memory_bytes")


@dataclass(frozen=True, slots=True)
class _Cut:
    """Something that may be left out: `is_made` tells of a status whether it may well have been."""

    what: str
    make: Callable[[PipelineJobStatus], PipelineJobStatus]
    is_made: Callable[[PipelineJobStatus], bool]


def bounded(status: PipelineJobStatus, max_bytes: int = MAX_STATUS_BYTES) -> PipelineJobStatus:
    """Return the status with as much left out as must be, least important first; `left_out` says what.

    With 0 bytes, all goes that may.
    """
    short = _with_sentences(status, MAX_SENTENCES_BYTES)
    made = set() if short is status else {_SENTENCES}
    for cut in (_MEASURED, _SENTENCES, _PREDICTED):
        if size(short) <= max_bytes:
            break
        short = cut.make(short)
        made.add(cut)
    # What was left out before is still missing, though it was not there to be left out again.
    before = status.left_out or ""
    told = [
        cut.what
        for cut in (_MEASURED, _SENTENCES, _PREDICTED)
        if cut.is_made(short) and (cut in made or cut.what in before)
    ]
    left_out = f"too large to be stored whole; left out: {', '.join(told)}" if told else None
    return short if short.left_out == left_out else short.model_copy(update={"left_out": left_out})


def size(status: PipelineJobStatus) -> int:
    """Return the bytes that a status takes as JSON."""
    return len(status.model_dump_json(by_alias=True, exclude_none=True).encode())


def _with_sentences(status: PipelineJobStatus, max_bytes: int) -> PipelineJobStatus:
    """Keep the sentences that matter most: of stages that failed, then of those that are stuck, then of the rest."""
    told = sorted((stage for stage in status.stages if stage.message), key=_importance)
    kept, left = set(), max_bytes
    for stage in told:
        left -= len((stage.message or "").encode())
        if left < 0:
            break
        kept.add((stage.replica, stage.stage))
    if len(kept) == len(told):
        return status
    return _with_stages(
        status,
        lambda stage: stage if (stage.replica, stage.stage) in kept else stage.model_copy(update={"message": None}),
    )


def _importance(stage: StageStatus) -> tuple[bool, bool, bool, int, int]:
    failed = stage.exit_code not in {None, ExitCode.OK, ExitCode.STOPPED, ExitCode.LEFT, ExitCode.PEER_LOST}
    return (not failed, stage.exit_code is not None, stage.ready, stage.replica, stage.stage)


def _without_measurements(status: PipelineJobStatus) -> PipelineJobStatus:
    unset = dict.fromkeys(_MEASUREMENTS)
    return _with_stages(status, lambda stage: stage.model_copy(update=unset))


def _without_predictions(status: PipelineJobStatus) -> PipelineJobStatus:
    if status.plan is None:
        return status
    return status.model_copy(update={"plan": status.plan.model_copy(update={"stages": ()})})


def _with_stages(status: PipelineJobStatus, change: Callable[[StageStatus], StageStatus]) -> PipelineJobStatus:
    return status.model_copy(update={"stages": tuple(change(stage) for stage in status.stages)})


_MEASURED = _Cut(
    "measurements of single stages",
    _without_measurements,
    lambda status: any(stage.step is None for stage in status.stages),
)
_SENTENCES = _Cut(
    "sentences of single stages",
    lambda status: _with_sentences(status, 0),
    lambda status: any(stage.reason and not stage.message for stage in status.stages),
)
_PREDICTED = _Cut(
    "predictions for single stages",
    _without_predictions,
    lambda status: status.plan is not None and not status.plan.stages,
)
