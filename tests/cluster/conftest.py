"""A real API server for the tests of this folder: one for each test worker, a namespace for each test."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

import toolchain
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import start_kwok
from support.api_server.operatorprocess import OperatorProcess
from support.local.processes import Process, wait_until

_CRDS = Path(__file__).parents[2] / "crds"
_PLURALS = ("pipelinejobs", "topologyprofiles")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """etcd, kube-apiserver, scheduler and the controllers that delete; our CRDs are in force.

    A test that stops the server must start it again.
    """
    toolchain.provide(toolchain.APISERVER_TIER)
    with ApiServer(tmp_path_factory.mktemp("api-server")) as server:
        server.kubectl("apply", "--server-side", "-f", _CRDS)
        for plural in _PLURALS:
            wait_until(lambda plural=plural: _is_established(server, plural), f"the CRD of {plural} is served")
        server.start_scheduler()
        # After the CRD: the garbage collector looks for new kinds only every 30 s.
        server.start_controllers()
        yield server


def _is_established(server: ApiServer, plural: str) -> bool:
    """`kubectl wait` cannot be asked: it fails on a CRD that has no conditions yet."""
    conditions = server.get("crd", f"{plural}.pipelinejob.io").get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


@pytest.fixture(scope="session")
def kwok(api_server: ApiServer) -> Process:
    """Kubelets that only pretend, for all nodes of the server (`fakenodes.add_nodes`)."""
    return start_kwok(api_server)


@pytest.fixture(scope="module")
def operator(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The real operator for the tests of a file, which it must outlive."""
    with OperatorProcess(api_server.kubeconfig, tmp_path_factory.mktemp("operator")) as operator:
        yield operator
        assert operator.alive


@pytest.fixture
def namespace(api_server: ApiServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace under Pod Security `restricted`, deleted afterwards with all it holds."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{words}-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    # No controller may be left to take a finalizer off.
    jobs = api_server.get("pipelinejobs.pipelinejob.io", "-n", name)["items"]
    for job in (job["metadata"] for job in jobs if job["metadata"].get("finalizers")):
        patch = json.dumps({"metadata": {"finalizers": None}})
        api_server.kubectl("patch", "pipelinejob", "-n", name, job["name"], "--type=merge", "-p", patch)
    api_server.kubectl("delete", "pods", "-n", name, "--all", "--grace-period=0", "--force", "--ignore-not-found")
    api_server.kubectl("delete", "namespace", name, "--wait=false")
