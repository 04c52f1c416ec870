"""The fewest of some jobs that have to leave: the least wanted first, and none that need not."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from pipelinejob_operator.objects.job import Job

T = TypeVar("T")

_MAX_LOOKED_AT = 24  # each look is a placement


def fewest(
    levels: Sequence[Sequence[Job]], found: Callable[[Sequence[Job]], T | None]
) -> tuple[tuple[Job, ...], T] | None:
    """Choose which jobs have to leave so that something is found; None if not even all of them help.

    Nobody of a later level leaves if the levels before it suffice. Then a single job leaves rather
    than several, one that stands earlier rather than a later one, and nobody without whom the
    others would do.
    """
    if (at_once := found(())) is not None:
        return (), at_once
    candidates: list[Job] = []
    for level in levels:
        candidates += level
        if found(candidates) is not None:
            return _fewest_of(candidates, level, found)
    return None


def _fewest_of(
    candidates: Sequence[Job], last: Sequence[Job], found: Callable[[Sequence[Job]], T | None]
) -> tuple[tuple[Job, ...], T] | None:
    for job in last[:_MAX_LOOKED_AT]:  # what helps alone is of the last level: those before it did not suffice
        if (alone := found([job])) is not None:
            return (job,), alone
    chosen = list(candidates[: _shortest(candidates, found)])
    for job in reversed(chosen[-_MAX_LOOKED_AT:-1]):  # without the last of them, they do not help
        others = [each for each in chosen if each is not job]
        if found(others) is not None:
            chosen = others
    result = found(chosen)
    # A bounded search may find a place in less room and none in more, and then halving goes
    # astray.
    return None if result is None else (tuple(chosen), result)


def _shortest(candidates: Sequence[Job], found: Callable[[Sequence[Job]], T | None]) -> int:
    low, high = 1, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if found(candidates[:middle]) is None:
            low = middle + 1
        else:
            high = middle
    return low
