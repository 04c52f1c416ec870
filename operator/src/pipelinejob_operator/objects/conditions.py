"""Conditions of a job: set so that their transition time moves only when they flip."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from pipelinejob.spec.reported.conditions import Condition, ConditionStatus, ConditionType
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.objects.job import condition, format_time

MAX_MESSAGE_LENGTH = 2000  # far below the schema's bound: eight conditions of an object that everybody lists


class Fact(NamedTuple):
    """What is found of a condition, before it is compared with what was found last."""

    holds: bool | None  # None: cannot be said yet
    reason: str
    message: str = ""


_FROM_THE_FIRST = tuple(kind for kind in ConditionType if kind is not ConditionType.RESIZED)
_STATUS = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}


def with_facts(
    status: PipelineJobStatus, facts: Mapping[ConditionType, Fact], *, generation: int, now: datetime
) -> PipelineJobStatus:
    """Set these conditions, leave the others, and have all of them from the first write."""
    found = {kind: _unset(kind) for kind in _FROM_THE_FIRST if condition(status, kind) is None} | dict(facts)
    conditions = tuple(
        _set(condition(status, kind), kind, found[kind], generation, now)
        if kind in found
        else _seen(condition(status, kind), generation)
        for kind in ConditionType
        if kind in found or condition(status, kind) is not None
    )
    return status.model_copy(update={"conditions": conditions, "observed_generation": generation})


def _unset(kind: ConditionType) -> Fact:
    never = {ConditionType.SUSPENDED, ConditionType.DEGRADED, ConditionType.STALLED}
    return Fact(False if kind in never else None, "NotYet" if kind not in never else "AsExpected")


def _set(last: Condition | None, kind: ConditionType, fact: Fact, generation: int, now: datetime) -> Condition:
    status = _STATUS[fact.holds]
    flipped = last is None or last.status is not status
    return Condition(
        type=kind,
        status=status,
        observed_generation=generation,
        last_transition_time=format_time(now) if last is None or flipped else last.last_transition_time,
        reason=fact.reason,
        message=fact.message[:MAX_MESSAGE_LENGTH],
    )


def _seen(last: Condition | None, generation: int) -> Condition:
    assert last is not None, "every condition is set by the first write"
    return last.model_copy(update={"observed_generation": generation})
