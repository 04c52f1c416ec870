"""How a local run begins, given what an earlier one left in its folder: anew, going on, not at all. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipelinejob.base.errors import SpecError
from pipelinejob.spec.reported.conditions import State


class Way(StrEnum):
    """What to do with the folder."""

    NEW = "new"
    CONTINUE = "continue"
    FINISHED = "finished"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The way, a sentence for the person who asked, and the job to begin with."""

    way: Way
    message: str
    job: Mapping[str, Any]


def begin(
    wanted: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    *,
    is_fresh: bool,
    has_checkpoints: bool,
    changes: Sequence[SpecError],
    folder: str,
) -> Beginning:
    """Decide how to begin.

    `is_fresh` says that what is there may be deleted. `previous` is the job that the folder
    remembers; `changes` are those between it and the one wanted that checkpoints cannot follow.
    """
    if is_fresh or (previous is None and not has_checkpoints):
        return Beginning(way=Way.NEW, message="", job=wanted)
    if previous is None:
        message = (
            f"{folder} holds checkpoints, but not the job that wrote them. "
            "Start anew with --fresh (it deletes them), or keep them with --output ANOTHER_FOLDER"
        )
        return Beginning(way=Way.REFUSED, message=message, job=wanted)
    if has_checkpoints and changes:
        listed = "\n".join(f"  {change}" for change in changes)
        message = (
            f"{folder} holds checkpoints of another job:\n{listed}\n"
            "Start anew with --fresh (it deletes them), or keep both with --output ANOTHER_FOLDER"
        )
        return Beginning(way=Way.REFUSED, message=message, job=previous)
    if not has_checkpoints and changes:
        return Beginning(
            way=Way.NEW, message=f"{folder} holds another job without a checkpoint: starting anew", job=wanted
        )
    if _state(previous) is State.SUCCEEDED and _steps(wanted) <= _steps(previous):
        message = (
            f"{folder} holds this run, finished after {_steps(previous)} steps. Train further with "
            f"--steps {2 * _steps(previous)}, start anew with --fresh (it deletes what is there), "
            "or keep it with --output ANOTHER_FOLDER"
        )
        return Beginning(way=Way.FINISHED, message=message, job=previous)
    source = "its last checkpoint" if has_checkpoints else "the beginning, there is no checkpoint yet"
    return Beginning(way=Way.CONTINUE, message=f"Going on in {folder} from {source}", job=_continued(wanted, previous))


def _continued(wanted: Mapping[str, Any], previous: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put the identity of the previous job into the wanted one; a new attempt fences off whatever the old one left."""
    status = previous.get("status", {})
    # A suspension has counted on already.
    attempt = int(status.get("attempt", 0)) + (_state(previous) is not State.SUSPENDED)
    identity = {name: previous["metadata"][name] for name in ("uid", "creationTimestamp", "generation")}
    return {**wanted, "metadata": {**wanted["metadata"], **identity}, "status": {"attempt": attempt}}


def _state(job: Mapping[str, Any]) -> State | None:
    state = job.get("status", {}).get("state")
    return State(state) if state else None


def _steps(job: Mapping[str, Any]) -> int:
    return int(job["spec"]["training"]["steps"])
