"""The operator as a process: it ends in time, one of several leads, and it says how it does."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from pipelinejob_operator.process.leader import LEASE_S
from support.api_server import faultproxy
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.faultproxy import FaultProxy
from support.api_server.operatorprocess import OperatorProcess, is_placed, job
from support.local.processes import Process, wait_until

# One worker for all: they share an operator, or fight over its processor time.
pytestmark = pytest.mark.xdist_group("operator-process")

LEADING = "leader_election_master_status"
TRIES = 3  # of what is to be quick: a busy machine may stop for a moment


@pytest.fixture
def gpu_node(api_server: ApiServer, kwok: Process, namespace: str):
    name = f"node-{namespace[-6:]}"
    add_nodes(api_server, [node(name, gpus=2)])
    yield name
    api_server.kubectl("delete", "node", name)


def leads(operator: OperatorProcess) -> bool:
    return operator.metric(LEADING, name="pipelinejob-operator") == 1


def lease(server: ApiServer, namespace: str) -> dict:
    return server.get("lease", "-n", namespace, "pipelinejob-operator")["spec"]


def test_sigterm_ends_it_within_2_s_and_releases_the_lease(api_server, namespace, tmp_path):
    def took_s() -> float:
        with OperatorProcess(api_server.kubeconfig, tmp_path, f"--namespace={namespace}") as operator:
            wait_until(lambda: leads(operator), "it leads")
            took_s = operator.stop()
        assert operator.process.returncode == 0
        assert lease(api_server, namespace).get("holderIdentity", "") == ""
        return took_s

    assert any(took_s() < 2 for _ in range(TRIES))


def test_sigterm_ends_it_within_2_s_when_the_api_server_is_gone(api_server, namespace, tmp_path):
    def took_s() -> float:
        with (
            FaultProxy(api_server) as proxy,
            OperatorProcess(proxy.kubeconfig(), tmp_path, f"--namespace={namespace}") as operator,
            proxy.fault(faultproxy.GONE),
        ):
            wait_until(lambda: proxy.hits >= 5, "it met the outage")
            took_s = operator.stop()
        assert operator.process.returncode == 0
        return took_s

    assert any(took_s() < 2 for _ in range(TRIES))


def test_a_released_lease_is_taken_at_once_and_work_goes_on(api_server, namespace, gpu_node, tmp_path):
    config = (api_server.kubeconfig, tmp_path, f"--namespace={namespace}")
    with OperatorProcess(*config, name="one") as one:
        wait_until(lambda: leads(one), "the first leads")
        with OperatorProcess(*config, name="two") as two:
            assert not leads(two)

            one.stop()

            wait_until(lambda: leads(two), "the second leads before the lease had run out", timeout_s=LEASE_S - 1)
            api_server.apply(job(namespace, "work", stages=2))
            wait_until(lambda: is_placed(api_server, namespace, "work", ranks=2), "the second works")


def test_a_killed_leader_is_replaced_once_its_lease_has_run_out(api_server, namespace, tmp_path):
    config = (api_server.kubeconfig, tmp_path, f"--namespace={namespace}")
    with OperatorProcess(*config, name="one") as one:
        wait_until(lambda: leads(one), "the first leads")
        with OperatorProcess(*config, name="two") as two:
            one.process.stop(signal.SIGKILL)

            assert not leads(two)
            wait_until(lambda: leads(two), "the second leads")
            assert lease(api_server, namespace)["holderIdentity"] == "two"
            assert lease(api_server, namespace)["leaseTransitions"] == 1


def test_a_standby_is_ready_and_healthy_but_touches_nothing(api_server, namespace, gpu_node, tmp_path):
    now = "2999-01-01T00:00:00.000000Z"
    held = {"holderIdentity": "somebody", "leaseDurationSeconds": 3600, "renewTime": now, "acquireTime": now}
    api_server.apply(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": namespace, "name": "pipelinejob-operator"},
            "spec": held,
        }
    )
    with OperatorProcess(api_server.kubeconfig, tmp_path, f"--namespace={namespace}") as standby:
        api_server.apply(job(namespace, "work", stages=2))
        wait_until(
            lambda: standby.metric("rest_client_requests_total", method="GET", code="200") >= 6,
            "it looked at the Lease",
        )

        assert (standby.get("/readyz"), standby.get("/healthz")) == ("ok", "ok")
        assert "status" not in api_server.get("pipelinejob", "-n", namespace, "work")
        assert standby.metric("rest_client_requests_total", method="PATCH") is None
        assert standby.metric("rest_client_requests_total", method="PUT") is None


def test_every_log_line_is_one_json_object(api_server, namespace, tmp_path):
    with OperatorProcess(api_server.kubeconfig, tmp_path, f"--namespace={namespace}", "--log-level=debug") as operator:
        wait_until(lambda: leads(operator), "it leads")

    lines = [json.loads(line) for line in operator.process.log.read_text().splitlines()]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert lines[-1]["event"] == "ended"


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--metrics-port=99999", "'99999' is no port; use 1 to 65535"),
        ("--workers=0", "'0' is no whole number of at least 1"),
        ("--kube-api-qps=-1", "'-1' is no number of requests a second; write for example 500, or 0"),
        ("--kube-api-burst=0", "'0' is no whole number of at least 1"),
        ("--log-level=loud", "'loud' is no log level; use one of debug, info, warning, error"),
        ("--hardware=/nowhere/own.toml", "/nowhere/own.toml: No such file or directory"),
        ("--gang-timeout-seconds=-1", "'-1' is no number of seconds above 0; write for example 10"),
        ("--start-timeout-seconds=0", "'0' is no number of seconds above 0; write for example 10"),
        ("--kubeconfig=/nowhere/config", "name a kubeconfig with --kubeconfig or KUBECONFIG, or run in a pod"),
    ],
)
def test_a_bad_setting_ends_it_with_code_2_and_a_sentence(flag, complaint, tmp_path):
    operator = OperatorProcess(tmp_path / "none", tmp_path, flag)
    result = subprocess.run(operator.command, capture_output=True, text=True, timeout=120, check=False)

    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_environment_variable_gets_the_same_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINEJOB_OPERATOR_WORKERS", "many")
    operator = OperatorProcess(tmp_path / "none", tmp_path)
    result = subprocess.run(operator.command, capture_output=True, text=True, timeout=120, check=False)

    assert result.returncode == 2
    assert "'many' is no whole number of at least 1" in result.stderr
