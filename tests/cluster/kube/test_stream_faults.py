"""Whatever the stream does, the operator process stays up and has caught up 5 seconds after the fault's end.

On a slow machine it has longer: by twice what placing a job takes there without any fault.

The node has room for one job. During the fault that job is deleted and another is made: only an
operator that saw the deletion in the gap, pods included, and the creation, gives the second one
the first one's place.
"""

from __future__ import annotations

import time

import pytest

from support.api_server import faultproxy
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.faultproxy import FaultProxy
from support.api_server.operatorprocess import OperatorProcess, is_placed, job, pods
from support.local.processes import Process, wait_until

# One worker for all: they share an operator, or fight over its processor time.
pytestmark = pytest.mark.xdist_group("stream-faults")

CATCH_UP_S = 5
STAGES = 2

FAULTS = {
    "HTTP 410 on the watch": faultproxy.refuse_watch(410),
    "HTTP 404 on the watch": faultproxy.refuse_watch(404),
    "HTTP 410 on the list": faultproxy.refuse_list(410),
    "HTTP 404 on the list": faultproxy.refuse_list(404),
    "a torn JSON line": faultproxy.TORN_LINE,
    "a stream cut in the middle of a line": faultproxy.TORN_AND_CUT,
    "an ERROR event that is not 410": faultproxy.error_event(500),
    "an ERROR event with 410": faultproxy.error_event(410),
    "an HTML line in the stream": faultproxy.HTML_LINE,
    "HTTP 503 on everything": faultproxy.refuse_all(503),
    "HTTP 429 on everything, with Retry-After": faultproxy.refuse_all(429, retry_after="1"),
    "frozen watches": faultproxy.FROZEN,
    "dropped connections": faultproxy.GONE,
}


@pytest.fixture(scope="module")
def proxy(api_server: ApiServer):
    with FaultProxy(api_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def operator(proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory):
    """One process for all faults: it must outlive them all."""
    with OperatorProcess(proxy.kubeconfig(), tmp_path_factory.mktemp("operator")) as operator:
        yield operator
        assert operator.alive


@pytest.fixture
def gpu_node(api_server: ApiServer, kwok: Process, namespace: str):
    name = f"node-{namespace[-6:]}"
    add_nodes(api_server, [node(name, gpus=STAGES)])
    yield name
    api_server.kubectl("delete", "node", name)


def replace_job(server: ApiServer, namespace: str) -> None:
    """Delete the first job, wait until its pods are gone, make the second."""
    server.kubectl("delete", "pipelinejob", "-n", namespace, "first", "--wait=true")
    wait_until(lambda: not pods(server, namespace, "first"), "the first job's pods are collected")
    server.apply(job(namespace, "second", stages=STAGES))


def submit_first(server: ApiServer, namespace: str) -> float:
    """Return the seconds that it took to be placed."""
    started = time.monotonic()
    server.apply(job(namespace, "first", stages=STAGES))
    wait_until(lambda: is_placed(server, namespace, "first", ranks=STAGES), "the first job is placed")
    return time.monotonic() - started


def assert_caught_up(server: ApiServer, operator: OperatorProcess, namespace: str, *, pid: int, usual_s: float) -> None:
    wait_until(
        lambda: is_placed(server, namespace, "second", ranks=STAGES),
        f"the second job has the first one's place\n{operator.process.tail(30)}",
        timeout_s=CATCH_UP_S + 2 * usual_s,
    )
    assert operator.alive
    assert operator.process.pid == pid
    assert operator.metric("pipelinejob_restarts_total", namespace=namespace, pipelinejob="first") is None
    assert operator.metric("pipelinejob_restarts_total", namespace=namespace, pipelinejob="second") == 0


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_job_replaced_during_a_fault_is_placed_soon_after(  # noqa: PLR0917  # fixtures
    api_server, proxy, operator, namespace, gpu_node, fault
):
    usual_s = submit_first(api_server, namespace)
    pid = operator.process.pid

    with proxy.fault(fault):
        replace_job(api_server, namespace)
        # Each of the three caches, and kopf, met the fault; a frozen stream can be met once only.
        wait_until(lambda: proxy.hits >= (3 if fault.freeze else 8), "the fault was met")

    assert_caught_up(api_server, operator, namespace, pid=pid, usual_s=usual_s)


def test_kopf_begins_again_when_a_stream_ended_it(proxy, operator):
    deaths = operator.metric("pipelinejob_operator_watch_restarts_total", watch="kopf") or 0

    with proxy.fault(faultproxy.refuse_watch(410)):
        wait_until(
            lambda: (operator.metric("pipelinejob_operator_watch_restarts_total", watch="kopf") or 0) > deaths,
            f"kopf was begun again\n{operator.process.tail(30)}",
        )

    assert operator.alive


def test_an_api_server_gone_for_a_minute_ends_nothing(api_server, proxy, operator, namespace, gpu_node):
    usual_s = submit_first(api_server, namespace)
    pid = operator.process.pid

    with proxy.fault(faultproxy.GONE):
        gone_since = time.monotonic()
        replace_job(api_server, namespace)
        wait_until(lambda: time.monotonic() - gone_since >= 60, "a minute is over")
        assert operator.get("/healthz") == "ok"

    assert_caught_up(api_server, operator, namespace, pid=pid, usual_s=usual_s)
