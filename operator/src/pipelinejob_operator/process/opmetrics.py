"""Every metric of the operator process, declared here; those of jobs stand in jobmetrics.py.

Names are client-go's and controller-runtime's where they mean the same.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from pipelinejob.base import names
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.process.jobmetrics import JobsText

ADMITTED = "admitted"  # what comes of an attempt that gave the job room

_CONTROLLER = "pipelinejob"
_TOO_MANY_REQUESTS = "429"
_RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300)
_REQUEST_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class OperatorMetrics:
    """The operator's metrics, in a registry of their own, each part of the process with its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.queue = QueueMetrics(registry)
        self.requests = RequestMetrics(registry)
        self.events = EventMetrics(registry)
        self.admission = AdmissionMetrics(registry)
        self._reconciles = Counter(
            "controller_runtime_reconcile_total", "Passes over jobs.", ("controller", "result"), registry=registry
        )
        self._reconcile_time = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Seconds a pass took.",
            ("controller",),
            registry=registry,
            buckets=_RECONCILE_BUCKETS,
        )
        self._leading = Gauge(
            "leader_election_master_status", "Whether this operator leads: 1 or 0.", ("name",), registry=registry
        )
        self._restarts = Counter(
            "pipelinejob_operator_watch_restarts_total",
            "Watches that failed and began again.",
            ("watch",),
            registry=registry,
        )
        self._lag = Histogram(
            "pipelinejob_operator_event_loop_lag_seconds",
            "Seconds by which the event loop woke a task later than asked, measured ten times a second.",
            registry=registry,
            buckets=_LAG_BUCKETS,
        )
        self._worst_lag = Gauge(
            "pipelinejob_operator_event_loop_lag_max_seconds",
            "The worst of it in the last minute.",
            registry=registry,
        )
        self._jobs_text = JobsText()
        self.leading(held=False)

    def export(self, jobs: Sequence[Object]) -> Sequence[bytes]:
        """Return the text that Prometheus scrapes, in parts; any thread may ask, one at a time."""
        return [generate_latest(self.registry), *self._jobs_text.render(jobs)]

    def reconciled(self, result: str, seconds: float) -> None:
        """Count a pass: `success`, `requeue_after`, `requeue` (a conflict) or `error`."""
        self._reconciles.labels(_CONTROLLER, result).inc()
        self._reconcile_time.labels(_CONTROLLER).observe(seconds)

    def leading(self, *, held: bool) -> None:
        """Take whether this operator leads."""
        self._leading.labels(names.FIELD_MANAGER).set(1 if held else 0)

    def watch_restarted(self, watch: str) -> None:
        """Count a watch (`kopf`, `pods`, ...) that began again."""
        self._restarts.labels(watch).inc()

    def loop_lag(self, seconds: float, *, worst_s: float) -> None:
        """Take how late the event loop was this time, and the worst of the last minute."""
        self._lag.observe(seconds)
        self._worst_lag.set(worst_s)


class QueueMetrics:
    """The work queue, as client-go's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._depth = Gauge("workqueue_depth", "Jobs that wait for a pass.", ("name",), registry=registry)
        self._adds = Counter("workqueue_adds_total", "Passes asked for.", ("name",), registry=registry)
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Seconds a job waited for its pass.",
            ("name",),
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        )
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "Seconds a job's pass took.",
            ("name",),
            registry=registry,
            buckets=_RECONCILE_BUCKETS,
        )
        self._retries = Counter(
            "workqueue_retries_total", "Passes asked for by failures.", ("name",), registry=registry
        )
        unfinished = Gauge(
            "workqueue_unfinished_work_seconds",
            "Seconds that the passes in work have taken, added up.",
            ("name",),
            registry=registry,
        )
        longest = Gauge(
            "workqueue_longest_running_processor_seconds",
            "Seconds that the longest of them has taken.",
            ("name",),
            registry=registry,
        )
        self._in_work: dict[object, float] = {}  # each pass in work, and since when
        self.depth(0)
        self._adds.labels(_CONTROLLER)
        self._retries.labels(_CONTROLLER)
        unfinished.labels(_CONTROLLER).set_function(lambda: sum(self._running_s()))
        longest.labels(_CONTROLLER).set_function(lambda: max(self._running_s(), default=0.0))

    def depth(self, depth: int) -> None:
        """Take how many jobs wait for a pass."""
        self._depth.labels(_CONTROLLER).set(depth)

    def added(self) -> None:
        """Count a pass that was asked for."""
        self._adds.labels(_CONTROLLER).inc()

    def waited(self, seconds: float) -> None:
        """Take how long a job waited for its pass."""
        self._waited.labels(_CONTROLLER).observe(seconds)

    def retried(self) -> None:
        """Count a pass that was asked for by a failure."""
        self._retries.labels(_CONTROLLER).inc()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count the block as a pass in work."""
        this, since_s = object(), time.monotonic()
        self._in_work[this] = since_s
        try:
            yield
        finally:
            del self._in_work[this]
            self._worked.labels(_CONTROLLER).observe(time.monotonic() - since_s)

    def _running_s(self) -> list[float]:
        now_s = time.monotonic()
        return [now_s - since_s for since_s in tuple(self._in_work.values())]


class RequestMetrics:
    """Requests to the API server, as client-go's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "rest_client_requests_total", "Requests to the API server.", ("code", "method", "host"), registry=registry
        )
        self._took = Histogram(
            "rest_client_request_duration_seconds",
            "Seconds until an answer began.",
            ("verb", "host"),
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self._limited = Histogram(
            "rest_client_rate_limiter_duration_seconds",
            "Seconds that requests waited for their turn, here.",
            ("verb", "host"),
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self._retries = Counter(
            "rest_client_request_retries_total",
            "Requests sent again because the API server said when to.",
            ("code", "verb", "host"),
            registry=registry,
        )

    def request(self, *, method: str, code: str, host: str, seconds: float) -> None:
        """Count a request to the API server, and the seconds until its answer began."""
        self._requests.labels(code, method, host).inc()
        self._retries.labels(_TOO_MANY_REQUESTS, method, host)  # 0 is told, too
        self._took.labels(method, host).observe(seconds)

    def rate_limited(self, *, method: str, host: str, seconds: float) -> None:
        """Take how long a request waited for its turn."""
        self._limited.labels(method, host).observe(seconds)

    def retried(self, *, method: str, code: str, host: str) -> None:
        """Count a request that is sent again because the API server said when to."""
        self._retries.labels(code, method, host).inc()


class EventMetrics:
    """Events about jobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting = Gauge(
            "pipelinejob_operator_events_waiting",
            "Events about jobs that wait to be written, joined ones as one.",
            registry=registry,
        )
        self._written = Counter(
            "pipelinejob_operator_events_written_total",
            "Events about jobs that were written, joined ones as one.",
            registry=registry,
        )
        self._dropped = Counter(
            "pipelinejob_operator_events_dropped_total",
            "Events about jobs that were not written, by cause.",
            ("cause",),
            registry=registry,
        )

    def events_waiting(self, number: int) -> None:
        """Take how many events wait to be written, joined ones as one."""
        self._waiting.set(number)

    def event_written(self) -> None:
        """Count an event, or a number of joined ones, that was written."""
        self._written.inc()

    def event_dropped(self, cause: str, number: int) -> None:
        """Count events that will never be written."""
        self._dropped.labels(cause).inc(number)


class AdmissionMetrics:
    """The line of jobs that want room, and the cycles that work it off."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._cycles = Histogram(
            "pipelinejob_operator_admission_cycle_seconds",
            "Seconds that a cycle of admission took.",
            registry=registry,
            buckets=_RECONCILE_BUCKETS,
        )
        self._waiting = Gauge("pipelinejob_operator_admission_waiting", "Jobs in line for room.", registry=registry)
        self._admitted = Counter(
            "pipelinejob_operator_admission_admitted_total", "Jobs that were given room.", registry=registry
        )
        self._attempts = Counter(
            "pipelinejob_operator_admission_attempts_total",
            "Jobs that admission looked at, by what came of it.",
            ("result",),
            registry=registry,
        )
        self._head_since: datetime | None = None
        Gauge(
            "pipelinejob_operator_queue_age_seconds",
            "Seconds that the head of the line has waited; 0 where there is no line.",
            registry=registry,
        ).set_function(self._queue_age_s)

    def cycle(self, seconds: float) -> None:
        """Take how long a cycle took."""
        self._cycles.observe(seconds)

    def line(self, waiting: int, *, head_since: datetime | None) -> None:
        """Take how many jobs are in line, and since when the first of them is; its age goes on by itself."""
        self._waiting.set(waiting)
        self._head_since = head_since

    def attempted(self, result: str) -> None:
        """Count a job that admission looked at: `admitted`, or the reason why not."""
        self._attempts.labels(result).inc()
        if result == ADMITTED:
            self._admitted.inc()

    def _queue_age_s(self) -> float:
        since = self._head_since
        return max(0.0, (datetime.now(UTC) - since).total_seconds()) if since else 0.0
