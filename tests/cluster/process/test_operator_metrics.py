"""What the operator exports of jobs, passes and the line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelinejob_operator.process.jobmetrics import JobsText
from pipelinejob_operator.process.opmetrics import OperatorMetrics
from pipelinejob_operator.process.workqueue import WorkQueue


def exported(metrics: OperatorMetrics, jobs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Every sample by its name and labels, as a scrape has them."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(b"".join(metrics.export(jobs)).decode())
        for sample in family.samples
    }


def told(name: str, **labels: str) -> str:
    return f"{name}{sorted({'namespace': 'n', 'pipelinejob': 'job', **labels}.items())}"


def running(version: str = "7", **status: Any) -> dict[str, Any]:
    metadata = {"namespace": "n", "name": "job", "uid": "u", "resourceVersion": version}
    return {"metadata": metadata, "status": {"restarts": 2, **status}}


def test_a_jobs_metrics_are_its_statuss_and_go_with_it():
    placement = {
        "crossed": "leaf 1, node 7",
        "penalty": "1.2%",
        "leastPenalty": "0.4%",
        "roomLeft": {"leaf": 5},
    }
    measured = {"step": 120, "loss": "2.431", "bubble": "27.3%", "crossings": {"leaf": 1, "node": 7}}
    jobs = [running(conditions=[{"type": "Placed", "status": "True"}], placement=placement, **measured)]
    metrics = OperatorMetrics()

    values = exported(metrics, jobs)

    assert values[told("pipelinejob_status_condition", type="Placed", status="True")] == 1
    assert values[told("pipelinejob_status_condition", type="Placed", status="False")] == 0
    assert values[told("pipelinejob_restarts_total")] == 2
    assert values[told("pipelinejob_job_step")] == 120
    assert values[told("pipelinejob_job_loss")] == 2.431
    assert values[told("pipelinejob_job_bubble_ratio")] == pytest.approx(0.273)
    assert values[told("pipelinejob_placement_crossings", level="leaf")] == 1
    assert values[told("pipelinejob_placement_crossings", level="node")] == 7
    assert values[told("pipelinejob_placement_penalty_ratio")] == pytest.approx(0.012)
    assert values[told("pipelinejob_placement_least_penalty_ratio")] == pytest.approx(0.004)
    assert values[told("pipelinejob_placement_room_left", level="leaf")] == 5

    jobs.clear()
    assert told("pipelinejob_restarts_total") not in exported(metrics, jobs)


def test_spares_are_told_of_jobs_that_keep_some_or_lack_them():
    spares = [{"number": 0, "ready": True}, {"number": 1}]
    kept = exported(OperatorMetrics(), [running(recovery={"spares": spares, "sparesUsed": 3})])
    assert kept[told("pipelinejob_job_spares", state="ready")] == 1
    assert kept[told("pipelinejob_job_spares", state="starting")] == 1
    assert kept[told("pipelinejob_job_spares_used_total")] == 3

    lacking = exported(OperatorMetrics(), [running(recovery={"fewerSpares": "no node has room for it now"})])
    assert lacking[told("pipelinejob_job_spares", state="ready")] == 0

    assert told("pipelinejob_job_spares", state="ready") not in exported(OperatorMetrics(), [running(recovery={})])


def test_a_job_that_changed_is_told_anew_and_one_of_the_same_name_is_another():
    jobs = [running(step=1)]
    metrics = OperatorMetrics()
    assert exported(metrics, jobs)[told("pipelinejob_job_step")] == 1

    jobs[0] = running("8", step=2)
    assert exported(metrics, jobs)[told("pipelinejob_job_step")] == 2

    other = running("8", step=3)
    other["metadata"]["uid"] = "v"
    jobs[0] = other
    assert exported(metrics, jobs)[told("pipelinejob_job_step")] == 3


def test_of_a_job_that_did_not_change_nothing_is_read_again():
    class Once(dict[str, Any]):
        reads = 0

        def get(self, key: str, default: Any = None) -> Any:
            Once.reads += 1
            return super().get(key, default)

    text = JobsText()
    first = b"".join(text.render([Once(running(step=1))]))
    reads = Once.reads

    assert b"".join(text.render([Once(running(step=1))])) == first
    assert Once.reads == reads > 0


def test_a_job_without_a_place_is_counted_under_the_reason_why():
    def job(name: str, **more: Any) -> dict[str, Any]:
        condition = {"type": "Placed", "status": "False", "reason": "NoRoom"}
        metadata = {"namespace": "n", "name": name, "uid": name, "resourceVersion": "1"}
        return {"metadata": metadata, "status": {"conditions": [condition], **more}}

    metrics = OperatorMetrics()
    jobs = [job("waits"), job("ended", completionTime="2026-01-02T03:04:05Z")]

    values = exported(metrics, jobs)

    assert values[told("pipelinejob_waiting_reason", pipelinejob="waits", reason="NoRoom")] == 1
    assert told("pipelinejob_waiting_reason", pipelinejob="ended", reason="NoRoom") not in values


def test_passes_in_work_are_told_while_they_are():
    metrics = OperatorMetrics()

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"name": "pipelinejob"})

    with metrics.queue.working():
        assert value("workqueue_unfinished_work_seconds") > 0
        assert value("workqueue_longest_running_processor_seconds") > 0
        assert value("workqueue_work_duration_seconds_count") in {None, 0}

    assert value("workqueue_unfinished_work_seconds") == 0
    assert value("workqueue_work_duration_seconds_count") == 1


async def test_the_queue_counts_what_is_asked_for_once_however_often():
    metrics = OperatorMetrics()
    queue = WorkQueue[str](metrics=metrics.queue)
    for key in ("a", "a", "b"):
        queue.add(key)

    assert metrics.registry.get_sample_value("workqueue_adds_total", {"name": "pipelinejob"}) == 2


def test_the_head_of_the_line_grows_older_without_anybodys_help():
    metrics = OperatorMetrics()
    metrics.admission.line(3, head_since=datetime.now(UTC) - timedelta(hours=1))
    metrics.admission.attempted("admitted")
    metrics.admission.attempted("NoRoom")

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"pipelinejob_operator_{name}", labels)

    assert value("admission_waiting") == 3
    assert value("admission_admitted_total") == 1
    assert value("admission_attempts_total", result="NoRoom") == 1
    assert 3600 <= value("queue_age_seconds") < value("queue_age_seconds")

    metrics.admission.line(0, head_since=None)
    assert value("queue_age_seconds") == 0
