"""The small parts of the operator's rim: election, metrics, a loop that is held, what is kept, typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from pipelinejob_operator.cluster import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Key,
    TooLargeError,
    UnavailableError,
)
from pipelinejob_operator.kube import projection
from pipelinejob_operator.kube.api import Api, GoneError, NotFoundError
from pipelinejob_operator.kube.sharing import Shared
from pipelinejob_operator.process import garbage
from pipelinejob_operator.process.jobmetrics import JobsText
from pipelinejob_operator.process.leader import Elector, ForeignLeaseError, NotLeaderError
from pipelinejob_operator.process.loopwatch import LoopWatch
from pipelinejob_operator.process.opmetrics import OperatorMetrics
from pipelinejob_operator.process.workqueue import WorkQueue

# ---- election


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Leases:
    """An API server that keeps one Lease, with resource versions; `down` makes it silent."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.down = False

    async def request(self, method: str, path: str, *, timeout_s: float, body: Any = None) -> dict[str, Any]:
        if self.down:
            raise UnavailableError("down")
        if method == "GET" and self.lease is None:
            raise NotFoundError(path)
        if method == "POST" and self.lease is not None:
            raise ConflictError("exists")
        if method == "PUT" and body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError("changed")
        if method != "GET":
            version = int(self.lease["metadata"]["resourceVersion"]) + 1 if self.lease else 1
            metadata = {**body["metadata"], "resourceVersion": str(version)}
            self.lease = {**copy.deepcopy(dict(body)), "metadata": metadata}
        return copy.deepcopy(self.lease)


async def attempt(elector: Elector) -> bool:
    """One round of the election."""
    with contextlib.suppress(ClusterError):
        await elector._try()
    return elector.held


def elector(leases: Leases, clock: Clock, identity: str) -> Elector:
    return Elector(leases, namespace="n", name="lease", identity=identity, monotonic=clock)


async def test_of_two_one_leads():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")

    assert [await attempt(one), await attempt(two)] == [True, False]


async def test_a_leader_that_cannot_renew_stops_writing_before_another_may_begin():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    await attempt(one)
    await attempt(two)

    clock.now += 10.1
    with pytest.raises(NotLeaderError, match="one does not hold the Lease"):
        one.check()
    assert not await attempt(two)

    clock.now += 5
    assert await attempt(two)
    assert leases.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_renews_is_never_displaced():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    for _ in range(20):
        assert await attempt(one)
        assert not await attempt(two)
        clock.now += 2


async def test_other_machines_clocks_mean_nothing():
    leases, clock = Leases(), Clock()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    await attempt(one)
    leases.lease["spec"]["renewTime"] = "1970-01-01T00:00:00.000000Z"

    assert not await attempt(two)


async def test_a_lease_of_another_program_is_never_taken_however_old_it_is():
    leases, clock = Leases(), Clock()
    leases.lease = {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": ""}}
    one = elector(leases, clock, "one")

    with pytest.raises(ForeignLeaseError, match="name another with --lease-name"):
        await one._try()

    assert leases.lease == {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": ""}}
    assert not one.held


async def test_after_an_outage_the_former_leader_leads_again():
    leases, clock = Leases(), Clock()
    one = elector(leases, clock, "one")
    await attempt(one)
    leases.down = True
    clock.now += 60
    assert not await attempt(one)

    leases.down = False
    assert await attempt(one)


async def test_a_renewal_is_trusted_from_when_it_was_asked_for():
    class Slow(Leases):
        async def request(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
            clock.now += 4
            return await super().request(method, path, **rest)

    clock = Clock()
    one = elector(Slow(), clock, "one")
    assert await attempt(one)

    clock.now += 2.1
    assert not one.held


# ---- metrics


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


# ---- the event loop


async def test_who_holds_the_event_loop_is_measured_and_named():
    metrics = OperatorMetrics()
    with capture_logs() as logs:
        watching = asyncio.create_task(LoopWatch(metrics, held_s=0.2).run())
        await asyncio.sleep(0)

        def is_named() -> bool:
            return any("in hold_the_loop" in line.get("stack", "") for line in logs)

        def hold_the_loop() -> None:
            until_s = time.monotonic() + 60
            while not is_named() and time.monotonic() < until_s:
                time.sleep(0.01)

        hold_the_loop()
        async with asyncio.timeout(60):
            while not any(line["event"] == "the event loop was held" for line in logs):
                await asyncio.sleep(0.01)
        watching.cancel()

    assert is_named()
    lag = "pipelinejob_operator_event_loop_lag_seconds"
    within = metrics.registry.get_sample_value(f"{lag}_bucket", {"le": "0.1"})
    assert metrics.registry.get_sample_value(f"{lag}_count") > within
    assert metrics.registry.get_sample_value("pipelinejob_operator_event_loop_lag_max_seconds") >= 0.2


def test_the_worst_of_the_last_minute_is_forgotten_after_it():
    metrics, now_s = OperatorMetrics(), time.monotonic()
    watch = LoopWatch(metrics)
    worst = []
    for at_s in (5.0, 5.2, 60.0, 66.0):
        watch._tick(now_s + at_s)
        watch._ticked_s = now_s + at_s + (0 if at_s != 5.2 else 54.6)
        worst.append(metrics.registry.get_sample_value("pipelinejob_operator_event_loop_lag_max_seconds"))

    assert worst[0] == worst[1] == worst[2] > 4
    assert worst[3] == pytest.approx(5.9)


def test_what_caches_hold_is_left_out_of_pythons_search_for_garbage():
    held, thresholds = [{"a": [1]}], gc.get_threshold()
    try:
        garbage.search_seldom()
        garbage.pass_over_what_is_held()

        assert gc.get_threshold()[0] > thresholds[0]
        assert not any(each is held for each in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


# ---- what is kept


def test_of_a_foreign_pod_only_what_takes_capacity_is_kept():
    item = {
        "metadata": {
            "name": "p",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "1",
            "annotations": {"big": "x"},
            "managedFields": [],
        },
        "spec": {
            "nodeName": "node",
            "containers": [{"name": "c", "image": "i", "env": [], "resources": {"requests": {"cpu": "1"}}}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    }

    kept = projection.pod(item)

    assert kept["metadata"] == {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1"}
    assert kept["spec"] == {
        "nodeName": "node",
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
    }
    assert kept["status"] == {"phase": "Running"}


def test_of_a_job_kubectls_copy_is_not_kept_and_other_annotations_are():
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "a"}
    kept = projection.job({"metadata": {"name": "j", "annotations": annotations, "managedFields": []}, "spec": {}})

    assert kept == {"metadata": {"name": "j", "annotations": {"team": "a"}}, "spec": {}}


def test_equal_parts_of_objects_are_one_and_no_object_changes_by_it():
    def pod(name: str) -> dict[str, Any]:
        probe = {"httpGet": {"path": "/healthz", "port": 1}, "is": True}
        container = {"name": name, "env": [{"name": "A", "value": name}, {"name": "B", "value": "b"}], "probe": probe}
        return {"metadata": {"name": name, "labels": {"l": name}}, "spec": {"containers": [container]}}

    shared = Shared()
    one, two = shared.keep(pod("one")), shared.keep(pod("two"))

    assert (one, two) == (pod("one"), pod("two"))
    first, second = (each["spec"]["containers"][0] for each in (one, two))
    assert first["probe"] is second["probe"]
    assert first["env"][1] is second["env"][1]
    assert first["env"][0] is not second["env"][0]
    assert shared.keep({"metadata": {}, "spec": {"a": {"x": 1}}})["spec"]["a"] == {"x": 1}
    assert shared.keep({"metadata": {}, "spec": {"a": {"x": True}}})["spec"]["a"]["x"] is True


def test_a_nodes_heartbeat_does_not_matter_and_its_readiness_does():
    def node(ready: str, heartbeat: str, version: str) -> dict[str, Any]:
        condition = {"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}
        metadata = {"name": "n", "uid": "u", "resourceVersion": version}
        return projection.node({"metadata": metadata, "status": {"conditions": [condition]}})

    assert not projection.matters(node("True", "12:00", "1"), node("True", "12:05", "2"))
    assert projection.matters(node("True", "12:00", "1"), node("False", "12:05", "2"))


def test_a_pods_job_is_its_controller_of_our_kind():
    def owned(**reference: Any) -> dict[str, Any]:
        return {"metadata": {"namespace": "n", "name": "p", "ownerReferences": [reference]}}

    assert projection.owner(owned(kind="PipelineJob", name="job", uid="u", controller=True)) == (Key("n", "job"), "u")
    assert projection.owner(owned(kind="PipelineJob", name="job", uid="u")) is None
    assert projection.owner(owned(kind="ReplicaSet", name="rs", uid="u", controller=True)) is None


# ---- typed errors


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, InvalidError),
        (401, UnavailableError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, GoneError),
        (413, TooLargeError),
        (422, InvalidError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_each_refusal_has_its_type_and_the_servers_words(code, error):
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "message": "the server's words"}, status=code)

    application = web.Application()
    application.router.add_get("/x", refuse)
    server = TestServer(application)
    await server.start_server()
    async with server, Api(Configuration(host=str(server.make_url("")).rstrip("/"))) as api:
        with pytest.raises(error, match="the server's words") as raised:
            await api.request("GET", "/x")

    assert type(raised.value) is error


async def test_an_api_server_that_is_not_there_is_unavailable():
    async with Api(Configuration(host="http://127.0.0.1:9")) as api:
        with pytest.raises(UnavailableError, match="GET /x"):
            await api.request("GET", "/x")
