"""Events on jobs (`kubectl describe`): joined while they wait, written behind all else, counted where they are dropped.

What waits is kept by job, type and reason: a later event of that kind takes the earlier one's
place and counts both, so that a storm becomes a number. What a job has waiting is written in one
go, jobs in the order in which they came.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from pipelinejob.base import names
from pipelinejob_operator.cluster import ClusterError, Event, Object, UnavailableError
from pipelinejob_operator.kube.api import JSON, MERGE, NotFoundError
from pipelinejob_operator.kube.pacing import on_behalf_of

_log = structlog.get_logger(__name__)

_MAX_NOTE = 1024  # the API server's own limit
_MAX_WAITING = 20_000  # a kilobyte each
_MAX_REMEMBERED = 20_000
_SERIES_S = 1800.0  # a repetition later than this is a new story; the API server forgets events after an hour
_MAX_AGE_S = 600.0  # of an event that cannot be written
_WRITERS = 4
_PAUSE_S = 1.0  # after a write that the API server did not take
_TELL_DROPPED_S = 60.0

# As client-go's recorder: a burst of 25 for each object, then one in five minutes.
_BURST = 25.0
_REFILL_PER_S = 1 / 300
# Of all objects together: jobs' own writes come first on a busy API server, and most of what it
# takes is left to them.
_RATE_PER_S = 50.0
_RATE_BURST = 100.0

# Why an event was dropped.
FULL: Final = "queue_full"
OBJECT_LIMIT: Final = "object_limit"
REFUSED: Final = "refused"
TOO_OLD: Final = "too_old"


class Writer(Protocol):
    """What the recorder needs of a connection."""

    async def request(
        self, method: str, path: str, *, body: dict[str, Any], content_type: str, timeout_s: float
    ) -> dict[str, Any]:
        """Send one request and return the JSON of the answer."""


class EventMetrics(Protocol):
    """Where events are counted."""

    def events_waiting(self, number: int) -> None:
        """Take how many events wait to be written, joined ones as one."""

    def event_written(self) -> None:
        """Count an event, or a number of joined ones, that was written."""

    def event_dropped(self, cause: str, number: int) -> None:
        """Count events that will never be written."""


@dataclass(frozen=True, slots=True)
class _Regarding:
    """The job that an event is about; of the job itself nothing is held."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class _Identity:
    """Events alike in this are one series."""

    uid: str
    event: Event


@dataclass(slots=True)
class _Waiting:
    """Events of one kind and reason about one job: the newest of them, and how many they were."""

    event: Event
    count: int
    when: str
    since_s: float


@dataclass(slots=True)
class _Line:
    """What one job has waiting, by kind and reason, in the order in which it happened last."""

    regarding: _Regarding
    events: dict[tuple[str, str], _Waiting] = field(default_factory=dict)


@dataclass(slots=True)
class _Series:
    path: str
    count: int
    last_s: float


@dataclass(slots=True)
class _Bucket:
    """Tokens that come back with time; `take` has one if there is one."""

    burst: float
    per_s: float
    filled_s: float
    tokens: float

    def take(self, now_s: float) -> float:
        """Take a token and return 0, or the seconds until there will be one."""
        self.tokens = min(self.burst, self.tokens + (now_s - self.filled_s) * self.per_s)
        self.filled_s = now_s
        if self.tokens < 1:
            return (1 - self.tokens) / self.per_s
        self.tokens -= 1
        return 0.0


class Recorder:
    """Writes events in the background; `run` does the work."""

    def __init__(
        self,
        api: Writer,
        *,
        instance: str,
        metrics: EventMetrics | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        self._api = api
        self._instance = instance
        self._metrics = metrics
        self._monotonic = monotonic
        self._max_waiting = max_waiting
        self._lines: dict[str, _Line] = {}
        self._num_waiting = 0
        self._ready: deque[str] = deque()  # uids that have a line and no writer, each once
        self._in_work: set[str] = set()
        self._has_work = asyncio.Event()
        self._series: OrderedDict[_Identity, _Series] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._rate = _Bucket(_RATE_BURST, _RATE_PER_S, monotonic(), _RATE_BURST)
        self._dropped: Counter[str] = Counter()
        if metrics:
            for cause in (FULL, OBJECT_LIMIT, REFUSED, TOO_OLD):
                metrics.event_dropped(cause, 0)  # 0 is told, too

    def record(self, job: Object, event: Event) -> None:
        """Have the event written; an earlier one of its kind that still waits is joined with it."""
        metadata = job["metadata"]
        regarding = _Regarding(metadata["namespace"], metadata["name"], metadata["uid"])
        self._put(regarding, _Waiting(event, 1, _now(), self._monotonic()))

    async def run(self) -> None:
        """Write what is recorded, for ever."""
        with on_behalf_of("events", is_background=True):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(_WRITERS):
                    tasks.create_task(self._write_lines())
                tasks.create_task(self._tell_dropped())

    # ---- what waits

    def _put(self, regarding: _Regarding, waiting: _Waiting) -> None:
        line = self._lines.get(regarding.uid)
        kind = (waiting.event.type, waiting.event.reason)
        earlier = line.events.pop(kind, None) if line else None
        if earlier is not None:
            waiting.count += earlier.count
        elif self._num_waiting >= self._max_waiting:
            self._drop(FULL, waiting.count)
            return
        else:
            self._count_waiting(1)
        if line is None:
            line = self._lines[regarding.uid] = _Line(regarding)
            self._be_ready(regarding.uid)
        line.events[kind] = waiting

    def _be_ready(self, uid: str) -> None:
        if uid in self._lines and uid not in self._in_work:
            self._ready.append(uid)
            self._has_work.set()

    def _count_waiting(self, change: int) -> None:
        self._num_waiting += change
        if self._metrics:
            self._metrics.events_waiting(self._num_waiting)

    # ---- what is written

    async def _write_lines(self) -> None:
        while True:
            while not self._ready:
                self._has_work.clear()
                await self._has_work.wait()
            uid = self._ready.popleft()
            self._in_work.add(uid)  # one writer a job: its events stay in order
            line = self._lines.pop(uid)
            self._count_waiting(-len(line.events))
            for waiting in line.events.values():
                await self._write_if_allowed(line.regarding, waiting)
            self._in_work.discard(uid)
            self._be_ready(uid)

    async def _write_if_allowed(self, regarding: _Regarding, waiting: _Waiting) -> None:
        own = self._bucket(regarding.uid)
        if own.take(self._monotonic()) > 0:
            self._drop(OBJECT_LIMIT, waiting.count)
            return
        while (wait_s := self._rate.take(self._monotonic())) > 0:  # noqa: ASYNC110  # tokens come with time
            await asyncio.sleep(wait_s)
        try:
            await self._write(regarding, waiting)
        except UnavailableError as error:
            own.tokens += 1
            await self._wait_and_put_back(regarding, waiting, error)
        except ClusterError as error:
            _log.debug("event refused", reason=waiting.event.reason, error=str(error))
            self._drop(REFUSED, waiting.count)
        else:
            if self._metrics:
                self._metrics.event_written()

    async def _wait_and_put_back(self, regarding: _Regarding, waiting: _Waiting, error: UnavailableError) -> None:
        """Keep an event for an API server that comes back; a newer one of its kind has the last word."""
        _log.debug("event not written yet", reason=waiting.event.reason, error=str(error))
        await asyncio.sleep(_PAUSE_S)
        line = self._lines.get(regarding.uid)
        newer = line.events.get((waiting.event.type, waiting.event.reason)) if line else None
        if newer is not None:
            newer.count += waiting.count
        elif self._monotonic() - waiting.since_s > _MAX_AGE_S:
            self._drop(TOO_OLD, waiting.count)
        else:
            self._put(regarding, waiting)

    async def _write(self, regarding: _Regarding, waiting: _Waiting) -> None:
        identity = _Identity(regarding.uid, waiting.event)
        series = self._series.get(identity)
        if series and self._monotonic() - series.last_s < _SERIES_S and await self._continue(series, waiting):
            return
        folder = f"/apis/events.k8s.io/v1/namespaces/{regarding.namespace}/events"
        body = self._body(regarding, waiting)
        await self._api.request("POST", folder, body=body, content_type=JSON, timeout_s=5)
        path = f"{folder}/{body['metadata']['name']}"
        self._series[identity] = _Series(path, waiting.count, self._monotonic())
        if len(self._series) > _MAX_REMEMBERED:
            self._series.popitem(last=False)

    async def _continue(self, series: _Series, waiting: _Waiting) -> bool:
        """Count these into the series; False if the API server no longer knows it."""
        count = series.count + waiting.count
        body = {"series": {"count": count, "lastObservedTime": waiting.when}}
        try:
            await self._api.request("PATCH", series.path, body=body, content_type=MERGE, timeout_s=5)
        except NotFoundError:
            return False
        series.count = count
        series.last_s = self._monotonic()
        return True

    def _body(self, regarding: _Regarding, waiting: _Waiting) -> dict[str, Any]:
        repeated = {"series": {"count": waiting.count, "lastObservedTime": waiting.when}} if waiting.count > 1 else {}
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{regarding.name}.{time.time_ns():x}", "namespace": regarding.namespace},
            "eventTime": waiting.when,
            "type": waiting.event.type,
            "reason": waiting.event.reason,
            "note": waiting.event.message[:_MAX_NOTE],
            "action": "Reconcile",
            "reportingController": f"{names.GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "regarding": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
            **repeated,
        }

    def _bucket(self, uid: str) -> _Bucket:
        bucket = self._buckets.setdefault(uid, _Bucket(_BURST, _REFILL_PER_S, self._monotonic(), _BURST))
        self._buckets.move_to_end(uid)
        if len(self._buckets) > _MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket

    # ---- what is dropped

    def _drop(self, cause: str, number: int) -> None:
        self._dropped[cause] += number
        if self._metrics:
            self._metrics.event_dropped(cause, number)

    async def _tell_dropped(self) -> None:
        """Write one line a minute, with numbers, in place of one for each."""
        while True:
            await asyncio.sleep(_TELL_DROPPED_S)
            if self._dropped:
                _log.warning("events dropped", **self._dropped, seconds=_TELL_DROPPED_S, waiting=self._num_waiting)
                self._dropped.clear()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
