"""The small parts of the operator's rim: a loop that is held, what is kept, typed errors."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration
from structlog.testing import capture_logs

from pipelinejob_operator.cluster import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    Key,
    TooLargeError,
    UnavailableError,
)
from pipelinejob_operator.kube.api import Api, GoneError, NotFoundError
from pipelinejob_operator.kube.caching import projection
from pipelinejob_operator.kube.caching.sharing import Shared
from pipelinejob_operator.process import garbage
from pipelinejob_operator.process.handlers import KopfWatch
from pipelinejob_operator.process.loopwatch import LoopWatch
from pipelinejob_operator.process.opmetrics import OperatorMetrics

# ---- an end before the beginning


async def test_an_operator_that_ends_before_kopf_began_waits_for_no_kopf():
    async def credentials() -> Any:
        raise AssertionError("nobody asks")

    kopf = KopfWatch(
        loop=asyncio.get_running_loop(), credentials=credentials, enqueue=lambda _: None, on_restart=lambda: None
    )
    kopf.stop()

    kopf.join(60)


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
