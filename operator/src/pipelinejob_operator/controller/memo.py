"""Results that follow from a job's spec alone, kept until the spec changes. Saves work; losing it loses nothing."""

from collections.abc import Callable
from typing import Generic, TypeVar

from pipelinejob.errors import SpecError
from pipelinejob_operator.cluster import Key, Object

T = TypeVar("T")


class PerGeneration(Generic[T]):
    """One result a job; a SpecError is one, too."""

    def __init__(self, compute: Callable[[Object], T]) -> None:
        self._compute = compute
        self._known: dict[Key, tuple[str, int, T | SpecError]] = {}

    def __call__(self, job: Object) -> T:
        """Give the result for this generation of the job, or raise the SpecError that it was."""
        self.prepare(job)
        result = self._known[_key(job)][2]
        if isinstance(result, SpecError):
            raise result
        return result

    def knows(self, job: Object) -> bool:
        """Say whether the result for this generation of the job is at hand."""
        known = self._known.get(_key(job))
        return known is not None and known[:2] == _generation(job)

    def prepare(self, job: Object) -> None:
        """Compute the result for this generation of the job, unless it is at hand."""
        if self.knows(job):
            return
        try:
            result: T | SpecError = self._compute(job)
        except SpecError as error:
            result = error
        self._known[_key(job)] = (*_generation(job), result)

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._known.pop(key, None)


def _key(job: Object) -> Key:
    return Key(job["metadata"]["namespace"], job["metadata"]["name"])


def _generation(job: Object) -> tuple[str, int]:
    return job["metadata"]["uid"], job["metadata"].get("generation", 0)
