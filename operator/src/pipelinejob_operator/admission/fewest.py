"""The fewest of some jobs that have to leave: the least wanted first, and none that need not."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from pipelinejob_operator.objects.job import Job

T = TypeVar("T")

_MAX_LOOKED_AT = 24  # each look is a placement


def fewest(candidates: Sequence[Job], found: Callable[[Sequence[Job]], T | None]) -> tuple[tuple[Job, ...], T] | None:
    """Choose which of the candidates have to leave so that something is found; None if not even all of them help.

    `candidates` stand in the order in which they are to leave. Nobody is chosen beyond the first stretch of them that
    helps, so a later one never leaves in place of an earlier one; within it a single job is preferred to several, and
    nobody leaves without whom the others would do.
    """
    if found(candidates) is None:
        return None
    stretch = candidates[: _shortest(candidates, found)]
    if found(stretch) is None:  # a bounded search may find a place in less room and none in more
        stretch = candidates
    for job in stretch[-_MAX_LOOKED_AT:]:
        if (alone := found([job])) is not None:
            return (job,), alone
    chosen = list(stretch)
    for job in reversed(stretch[-_MAX_LOOKED_AT:-1]):  # without the last, the stretch does not help
        others = [each for each in chosen if each is not job]
        if found(others) is not None:
            chosen = others
    result = found(chosen)
    assert result is not None, "only what helps was chosen"
    return tuple(chosen), result


def _shortest(candidates: Sequence[Job], found: Callable[[Sequence[Job]], T | None]) -> int:
    low, high = 1, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if found(candidates[:middle]) is None:
            low = middle + 1
        else:
            high = middle
    return low
