"""Every metric of the operator process, declared here. Names are controller-runtime's where they mean the same.

What is said of a job is read from the cache at each scrape, so it goes when the job goes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelinejob.status import ConditionStatus, ConditionType
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.process.leader import LEASE_NAME

_CONTROLLER = "pipelinejob"
_STATUSES = ("True", "False", "Unknown")
_JOB_LABELS = ("namespace", "pipelinejob")
_RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300)


class OperatorMetrics:
    """The operator's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
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
        self._depth = Gauge("workqueue_depth", "Jobs that wait for a pass.", ("name",), registry=registry)
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Seconds a job waited for its pass.",
            ("name",),
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        )
        self._retries = Counter(
            "workqueue_retries_total", "Passes asked for by failures.", ("name",), registry=registry
        )
        self._requests = Counter(
            "rest_client_requests_total", "Requests to the API server.", ("code", "method", "host"), registry=registry
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
        self._depth.labels(_CONTROLLER).set(0)
        self.leading(held=False)

    def export(self) -> bytes:
        """Give the text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def reconciled(self, result: str, seconds: float) -> None:
        """Count a pass: `success`, `requeue_after`, `requeue` (a conflict) or `error`."""
        self._reconciles.labels(_CONTROLLER, result).inc()
        self._reconcile_time.labels(_CONTROLLER).observe(seconds)

    def depth(self, depth: int) -> None:
        """Say how many jobs wait for a pass."""
        self._depth.labels(_CONTROLLER).set(depth)

    def waited(self, seconds: float) -> None:
        """Say how long a job waited for its pass."""
        self._waited.labels(_CONTROLLER).observe(seconds)

    def retried(self) -> None:
        """Count a pass that was asked for by a failure."""
        self._retries.labels(_CONTROLLER).inc()

    def request(self, *, method: str, code: str, host: str) -> None:
        """Count a request to the API server."""
        self._requests.labels(code, method, host).inc()

    def leading(self, *, held: bool) -> None:
        """Say whether this operator leads."""
        self._leading.labels(LEASE_NAME).set(1 if held else 0)

    def watch_restarted(self, watch: str) -> None:
        """Count a watch (`kopf`, `pods`, ...) that began again."""
        self._restarts.labels(watch).inc()

    def describe_jobs(self, jobs: Callable[[], Sequence[Object]]) -> None:
        """Export what `jobs` gives at each scrape; only the leader may give any, or sums would count twice."""
        self.registry.register(_Jobs(jobs))


class _Jobs(Collector):
    """Conditions, restarts, progress and placement of every job, as its status has them."""

    def __init__(self, jobs: Callable[[], Sequence[Object]]) -> None:
        self._jobs = jobs

    def describe(self) -> Iterator[Metric]:
        # Without this the registry would collect once at registration, before there is a cache.
        return iter(_families().values())

    def collect(self) -> Iterator[Metric]:
        families = _families()
        for job in self._jobs():
            labels = (job["metadata"]["namespace"], job["metadata"]["name"])
            status = job.get("status") or {}
            for condition in status.get("conditions") or ():
                for value in _STATUSES:
                    is_so = float(condition["status"] == value)
                    families["condition"].add_metric((*labels, condition["type"], value), is_so)
            families["restarts"].add_metric(labels, float(status.get("restarts", 0)))
            for field in ("step", "loss", "bubble"):
                if (number := _number(status.get(field))) is not None:
                    families[field].add_metric(labels, number)
            _describe_place(families, labels, status)
        return iter(families.values())


def _describe_place(families: Mapping[str, Any], labels: tuple[str, str], status: Mapping[str, Any]) -> None:
    """Say how good the job's place is, or why it has none."""
    placement = status.get("placement") or {}
    for field, counts in (("crossings", status.get("crossings")), ("room_left", placement.get("roomLeft"))):
        for level, count in (counts or {}).items():
            families[field].add_metric((*labels, level), float(count))
    for field, share in (("penalty", placement.get("penalty")), ("least_penalty", placement.get("leastPenalty"))):
        if (number := _number(share)) is not None:
            families[field].add_metric(labels, number)
    if status.get("completionTime") is None:
        for condition in status.get("conditions") or ():
            if (condition["type"], condition["status"]) == (ConditionType.PLACED, ConditionStatus.FALSE):
                families["waiting"].add_metric((*labels, condition["reason"]), 1.0)


def _families() -> dict[str, Any]:
    return {
        "condition": GaugeMetricFamily(
            "pipelinejob_status_condition",
            "Whether a job's condition has this status: 1 or 0.",
            labels=(*_JOB_LABELS, "type", "status"),
        ),
        "restarts": CounterMetricFamily(
            "pipelinejob_restarts", "Restarts counted against the job's failure policy.", labels=_JOB_LABELS
        ),
        "step": GaugeMetricFamily("pipelinejob_job_step", "Optimiser steps completed.", labels=_JOB_LABELS),
        "loss": GaugeMetricFamily(
            "pipelinejob_job_loss", "Loss of the last step seen, nats a token.", labels=_JOB_LABELS
        ),
        "bubble": GaugeMetricFamily(
            "pipelinejob_job_bubble_ratio", "Measured bubble of late, the mean over stages.", labels=_JOB_LABELS
        ),
        "crossings": GaugeMetricFamily(
            "pipelinejob_placement_crossings",
            "Neighbouring stages parted at a level of the network.",
            labels=(*_JOB_LABELS, "level"),
        ),
        "room_left": GaugeMetricFamily(
            "pipelinejob_placement_room_left",
            "Stages like the job's that still fitted into one domain of a level when it was placed.",
            labels=(*_JOB_LABELS, "level"),
        ),
        "penalty": GaugeMetricFamily(
            "pipelinejob_placement_penalty_ratio",
            "Predicted share of a step that the job's crossings cost.",
            labels=_JOB_LABELS,
        ),
        "least_penalty": GaugeMetricFamily(
            "pipelinejob_placement_least_penalty_ratio",
            "The least of it that any place would have cost with what was free.",
            labels=_JOB_LABELS,
        ),
        "waiting": GaugeMetricFamily(
            "pipelinejob_waiting_reason", "1 for the reason why a job has no place.", labels=(*_JOB_LABELS, "reason")
        ),
    }


def _number(text: object) -> float | None:
    """Read a number of a status back: 120, `2.431` or `27.3%`."""
    try:
        return float(str(text).removesuffix("%")) / (100 if str(text).endswith("%") else 1)
    except ValueError:
        return None
