"""Whose an object is. Only its controller writes to it: nothing of another's is overwritten, adopted or deleted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelinejob.base import names
from pipelinejob_operator.cluster import Object

NAMES_TAKEN = "NamesTaken"
_NAMED = 3  # objects that a sentence names


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Another's object under a name that a job needs. One that is on its way out only has to be waited for."""

    kind: str
    name: str
    owner: str  # in words
    is_leaving: bool = False


def is_owned(item: Object, uid: str) -> bool:
    """Tell whether the object's controller has this uid."""
    return (controller(item) or {}).get("uid") == uid


def controller(item: Object) -> Mapping[str, Any] | None:
    """Return the reference to the object's controller; None if nobody controls it."""
    references: Sequence[Mapping[str, Any]] = item["metadata"].get("ownerReferences") or ()
    return next((each for each in references if each.get("controller")), None)


def obstacle(item: Object, *, uid: str, name: str, kind: str = names.KIND) -> Obstacle | None:
    """Say whose an object is that stands where one of this owner's was to stand; None if it is this owner's."""
    if is_owned(item, uid):
        return None
    found = controller(item)
    is_namesakes = found is not None and (found.get("kind"), found.get("name")) == (kind, name)
    noun = "job" if kind == names.KIND else kind
    return Obstacle(
        kind=item["kind"],
        name=item["metadata"]["name"],
        owner=f"of an earlier {noun} of this name" if is_namesakes else _owner(found),
        # The garbage collector takes what an earlier owner of the same name left.
        is_leaving=is_namesakes or "deletionTimestamp" in item["metadata"],
    )


def describe(obstacles: Sequence[Obstacle]) -> str:
    """Say in one sentence what stands in a job's way, whose it is and what to do."""
    foreign = [each for each in obstacles if not each.is_leaving]
    shown = _join(foreign or obstacles)
    if not foreign:
        return f"{shown}: still being deleted; the job goes on when that is done"
    it = "it" if len(foreign) == 1 else "them"
    return f"{shown}: needed by this job under that name, and not its own; delete {it}, or give the job another name"


def _owner(reference: Mapping[str, Any] | None) -> str:
    return f"of {reference.get('kind')} {reference.get('name')}" if reference else "of no owner"


def _join(obstacles: Sequence[Obstacle]) -> str:
    shown = [f"{each.kind} {each.name} ({each.owner})" for each in obstacles[:_NAMED]]
    more = len(obstacles) - _NAMED
    return ", ".join([*shown, *([f"{more} more"] if more > 0 else [])])
