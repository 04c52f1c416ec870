"""Results that follow from a job alone, kept until it changes. Saves work; losing it loses nothing."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Generic, TypeVar

from pipelinejob.base.errors import SpecError
from pipelinejob_operator.cluster import Key, Object
from pipelinejob_operator.objects.job import Rank
from pipelinejob_operator.objects.pods import StagePod, read_stage_pod

T = TypeVar("T")


class PerGeneration(Generic[T]):
    """One result a job; a SpecError is one, too."""

    def __init__(self, compute: Callable[[Object], T]) -> None:
        self._compute = compute
        self._known: dict[Key, tuple[str, int, T | SpecError]] = {}

    def __call__(self, job: Object) -> T:
        """Return the result for this generation of the job, or raise the SpecError that it was."""
        self.prepare(job)
        result = self._known[_key(job)][2]
        if isinstance(result, SpecError):
            raise result
        return result

    def knows(self, job: Object) -> bool:
        """Tell whether the result for this generation of the job is at hand."""
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
        self._known: dict[Key, tuple[Object, T]] = {}

    def __call__(self, job: Object) -> T:
        """The result for the job as it stands."""
        known = self._known.get(_key(job))
        if known is None or not _is_same(known[0], job):
            known = self._known[_key(job)] = (job, self._compute(job))
        return known[1]

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._known.pop(key, None)


def _is_same(known: Object, job: Object) -> bool:
    if known is job:
        return True
    one, other = known["metadata"], job["metadata"]
    version = one.get("resourceVersion")
    return bool(version) and (one["uid"], version) == (other["uid"], other.get("resourceVersion"))


class StagePods:
    """The pods of gangs as they were read, for as long as they stay the same: most do from one pass to the next."""

    def __init__(self) -> None:
        self._known: dict[Key, dict[str, tuple[Object, Rank | None, StagePod | None]]] = {}

    def read(self, key: Key, raws: Iterable[Object], ranks: Mapping[str, Rank]) -> tuple[StagePod, ...]:
        """Read all pods of a job; `ranks` says by name which rank each is."""
        known, now = self._known.get(key, {}), {}
        for raw in raws:
            uid, rank = raw["metadata"]["uid"], ranks.get(raw["metadata"]["name"])
            before = known.get(uid)
            is_same = before is not None and before[0] is raw and before[1] == rank
            now[uid] = before if before is not None and is_same else (raw, rank, read_stage_pod(raw, ranks))
        self._known[key] = now
        return tuple(pod for _, _, pod in now.values() if pod is not None)

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._known.pop(key, None)


class Lately(Generic[T]):
    """One answer a job, good for a while."""

    def __init__(self, *, keep_s: float) -> None:
        self._keep_s = keep_s
        self._known: dict[Key, tuple[datetime, T]] = {}

    def get(self, key: Key, now: datetime) -> T | None:
        """Return the answer, None if there is none or it is too old."""
        at, answer = self._known.get(key, (None, None))
        return answer if at is not None and (now - at).total_seconds() < self._keep_s else None

    def keep(self, key: Key, now: datetime, answer: T) -> None:
        """Keep an answer from now on."""
        self._known[key] = now, answer

    def forget(self, key: Key) -> None:
        """Let go of a job that is no more."""
        self._known.pop(key, None)


def _key(job: Object) -> Key:
    return Key(job["metadata"]["namespace"], job["metadata"]["name"])


def _generation(job: Object) -> tuple[str, int]:
    return job["metadata"]["uid"], job["metadata"].get("generation", 0)
