"""The small parts of the operator's rim: election, events, metrics, what is kept of pods and nodes, typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from pipelinejob_operator.cluster import (
    ClusterError,
    ConflictError,
    Event,
    ForbiddenError,
    InvalidError,
    Key,
    UnavailableError,
)
from pipelinejob_operator.kube import projection
from pipelinejob_operator.kube.api import Api, GoneError, NotFoundError
from pipelinejob_operator.kube.recorder import Recorder
from pipelinejob_operator.process.leader import Elector, NotLeaderError
from pipelinejob_operator.process.opmetrics import OperatorMetrics

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
            self.lease = {**copy.deepcopy(dict(body)), "metadata": {"resourceVersion": str(version)}}
        return copy.deepcopy(self.lease)


async def attempt(elector: Elector) -> bool:
    """One round of the election."""
    with contextlib.suppress(ClusterError):
        await elector._try()
    return elector.held


def elector(leases: Leases, clock: Clock, identity: str) -> Elector:
    return Elector(leases, namespace="n", identity=identity, monotonic=clock)


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


# ---- events

JOB = {"metadata": {"namespace": "n", "name": "job", "uid": "u"}}


class Written:
    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []

    async def request(self, method: str, path: str, *, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.requests.append((method, body))
        return body


async def record(recorder: Recorder, written: Written, events: list[Event], *, expected: int) -> None:
    running = asyncio.create_task(recorder.run())
    for event in events:
        recorder.record(JOB, event)
    async with asyncio.timeout(30):
        while len(written.requests) < expected:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    running.cancel()


async def test_an_event_that_repeats_is_one_series():
    written = Written()
    event = Event(type="Normal", reason="Waiting", message="no room")
    await record(Recorder(written, instance="op"), written, [event] * 3, expected=3)

    assert [method for method, _ in written.requests] == ["POST", "PATCH", "PATCH"]
    assert written.requests[2][1]["series"]["count"] == 3


async def test_a_jobs_events_are_limited_and_refill():
    written, clock = Written(), Clock()
    recorder = Recorder(written, instance="op", monotonic=clock)
    events = [Event(type="Normal", reason="Noise", message=str(number)) for number in range(40)]
    await record(recorder, written, events, expected=25)
    assert len(written.requests) == 25

    clock.now += 601
    await record(recorder, written, events, expected=27)
    assert len(written.requests) == 27


# ---- metrics


def test_a_jobs_metrics_are_its_statuss_and_go_with_it():
    jobs = [
        {
            "metadata": {"namespace": "n", "name": "job"},
            "status": {
                "restarts": 2,
                "step": 120,
                "loss": "2.431",
                "bubble": "27.3%",
                "conditions": [{"type": "Placed", "status": "True"}],
                "crossings": {"leaf": 1, "node": 7},
                "placement": {
                    "crossed": "leaf 1, node 7",
                    "penalty": "1.2%",
                    "leastPenalty": "0.4%",
                    "roomLeft": {"leaf": 5},
                },
            },
        }
    ]
    metrics = OperatorMetrics()
    metrics.describe_jobs(lambda: jobs)
    labels = {"namespace": "n", "pipelinejob": "job"}

    def value(name: str, **more: str) -> float | None:
        return metrics.registry.get_sample_value(name, {**labels, **more})

    assert value("pipelinejob_status_condition", type="Placed", status="True") == 1
    assert value("pipelinejob_status_condition", type="Placed", status="False") == 0
    assert value("pipelinejob_restarts_total") == 2
    assert value("pipelinejob_job_step") == 120
    assert value("pipelinejob_job_loss") == 2.431
    assert value("pipelinejob_job_bubble_ratio") == pytest.approx(0.273)
    assert value("pipelinejob_placement_crossings", level="leaf") == 1
    assert value("pipelinejob_placement_crossings", level="node") == 7
    assert value("pipelinejob_placement_penalty_ratio") == pytest.approx(0.012)
    assert value("pipelinejob_placement_least_penalty_ratio") == pytest.approx(0.004)
    assert value("pipelinejob_placement_room_left", level="leaf") == 5

    jobs.clear()
    assert value("pipelinejob_restarts_total") is None


def test_a_job_without_a_place_is_counted_under_the_reason_why():
    def job(name: str, **more: Any) -> dict[str, Any]:
        condition = {"type": "Placed", "status": "False", "reason": "NoRoom"}
        return {"metadata": {"namespace": "n", "name": name}, "status": {"conditions": [condition], **more}}

    metrics = OperatorMetrics()
    metrics.describe_jobs(lambda: [job("waits"), job("ended", completionTime="2026-01-02T03:04:05Z")])

    def value(name: str) -> float | None:
        labels = {"namespace": "n", "pipelinejob": name, "reason": "NoRoom"}
        return metrics.registry.get_sample_value("pipelinejob_waiting_reason", labels)

    assert value("waits") == 1
    assert value("ended") is None


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
