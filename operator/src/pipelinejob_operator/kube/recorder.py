"""Events on jobs (`kubectl describe`): aggregated, limited, and never in the way of a pass."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from pipelinejob import names
from pipelinejob_operator.cluster import ClusterError, Event, Object
from pipelinejob_operator.kube.api import JSON, MERGE, NotFoundError

_log = structlog.get_logger(__name__)

_MAX_NOTE = 1024  # the API server's own limit
_MAX_WAITING = 1000
_MAX_REMEMBERED = 4096
_SERIES_S = 1800.0  # a repetition later than this is a new story; the API server forgets events after an hour

# As client-go's recorder: a burst of 25 for each object, then one in five minutes.
_BURST = 25.0
_REFILL_PER_S = 1 / 300


class Writer(Protocol):
    """What the recorder needs of a connection."""

    async def request(
        self, method: str, path: str, *, body: dict[str, Any], content_type: str, timeout_s: float
    ) -> dict[str, Any]:
        """Send one request and give the JSON of the answer."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """Events alike in this are one series."""

    uid: str
    event: Event


@dataclass(slots=True)
class _Series:
    path: str
    count: int
    last_s: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_s: float


class Recorder:
    """Writes events in the background; `run` does the work."""

    def __init__(self, api: Writer, *, instance: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._instance = instance
        self._monotonic = monotonic
        self._waiting: asyncio.Queue[tuple[Object, Event]] = asyncio.Queue(_MAX_WAITING)
        self._series: OrderedDict[_Identity, _Series] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def record(self, job: Object, event: Event) -> None:
        """Have the event written; dropped if too many wait or the job has had too many."""
        if not self._take_token(job["metadata"]["uid"]):
            return
        try:
            self._waiting.put_nowait((job, event))
        except asyncio.QueueFull:
            _log.warning("event dropped", reason=event.reason, job=job["metadata"]["name"])

    async def run(self) -> None:
        """Write what is recorded, for ever."""
        while True:
            job, event = await self._waiting.get()
            try:
                await self._write(job, event)
            except ClusterError as error:
                _log.warning("event not written", reason=event.reason, error=str(error))

    async def _write(self, job: Object, event: Event) -> None:
        identity = _Identity(job["metadata"]["uid"], event)
        series = self._series.get(identity)
        if series and self._monotonic() - series.last_s < _SERIES_S and await self._continue(series):
            return
        folder = f"/apis/events.k8s.io/v1/namespaces/{job['metadata']['namespace']}/events"
        body = self._body(job, event)
        await self._api.request("POST", folder, body=body, content_type=JSON, timeout_s=5)
        self._series[identity] = _Series(f"{folder}/{body['metadata']['name']}", 1, self._monotonic())
        if len(self._series) > _MAX_REMEMBERED:
            self._series.popitem(last=False)

    async def _continue(self, series: _Series) -> bool:
        """Count one more in the series; False if the API server no longer knows it."""
        body = {"series": {"count": series.count + 1, "lastObservedTime": _now()}}
        try:
            await self._api.request("PATCH", series.path, body=body, content_type=MERGE, timeout_s=5)
        except NotFoundError:
            return False
        series.count += 1
        series.last_s = self._monotonic()
        return True

    def _body(self, job: Object, event: Event) -> dict[str, Any]:
        metadata = job["metadata"]
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{time.time_ns():x}", "namespace": metadata["namespace"]},
            "eventTime": _now(),
            "type": event.type,
            "reason": event.reason,
            "note": event.message[:_MAX_NOTE],
            "action": "Reconcile",
            "reportingController": f"{names.GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "regarding": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }

    def _take_token(self, uid: str) -> bool:
        now = self._monotonic()
        bucket = self._buckets.setdefault(uid, _Bucket(_BURST, now))
        self._buckets.move_to_end(uid)
        if len(self._buckets) > _MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        bucket.tokens = min(_BURST, bucket.tokens + (now - bucket.filled_s) * _REFILL_PER_S)
        bucket.filled_s = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
