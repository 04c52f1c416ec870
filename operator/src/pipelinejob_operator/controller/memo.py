"""Results that follow from a job alone, kept until it changes. Saves work; losing it loses nothing."""

from collections.abc import Callable, Iterable
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


class PerVersion(Generic[T]):
    """One result a job, as it stands."""

    def __init__(self, compute: Callable[[Object], T]) -> None:
        self._compute = compute
        self._known: dict[str, tuple[str, T]] = {}

    def of_all(self, jobs: Iterable[Object]) -> list[T]:
        """Give the results of all jobs that there are; forget those of any other."""
        self._known = {job["metadata"]["uid"]: self._of(job) for job in jobs}
        return [result for _, result in self._known.values()]

    def _of(self, job: Object) -> tuple[str, T]:
        metadata = job["metadata"]
        known, version = self._known.get(metadata["uid"]), metadata.get("resourceVersion", "")
        return known if known is not None and known[0] == version != "" else (version, self._compute(job))


def _key(job: Object) -> Key:
    return Key(job["metadata"]["namespace"], job["metadata"]["name"])


def _generation(job: Object) -> tuple[str, int]:
    return job["metadata"]["uid"], job["metadata"].get("generation", 0)
