"""Results that follow from a job's spec alone, kept until the spec changes. Saves work; losing it loses nothing."""

from collections.abc import Callable
from typing import Generic, TypeVar

from pipelinejob_operator.cluster import Key, Object

T = TypeVar("T")


class PerGeneration(Generic[T]):
    """One result a job."""

    def __init__(self, compute: Callable[[Object], T]) -> None:
        self._compute = compute
        self._known: dict[Key, tuple[str, int, T]] = {}

    def __call__(self, job: Object) -> T:
        """Give the result for this generation of the job."""
        metadata = job["metadata"]
        key, uid, generation = (
            Key(metadata["namespace"], metadata["name"]),
            metadata["uid"],
            metadata.get("generation", 0),
        )
        known = self._known.get(key)
        if known is None or known[:2] != (uid, generation):
            known = self._known[key] = (uid, generation, self._compute(job))
        return known[2]

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._known.pop(key, None)
