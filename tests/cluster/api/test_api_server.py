"""What the operator's tests stand on is real: admission, scheduling, deletion, an outage that keeps the data."""

from __future__ import annotations

import pytest

from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import HOLD, add_nodes, finish_pod, node
from support.local.processes import Process, wait_until

_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _pod(namespace: str, name: str, *, gpus: int = 0, on: str = "", annotations: dict[str, str] | None = None) -> dict:
    resources = {"limits": {"nvidia.com/gpu": gpus}} if gpus else {}
    container = {"name": "trainer", "image": "none", "securityContext": _RESTRICTED, "resources": resources}
    selector = {"nodeSelector": {"kubernetes.io/hostname": on}} if on else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "annotations": annotations or {}},
        "spec": {"containers": [container], **selector},
    }


@pytest.fixture
def gpu_node(api_server: ApiServer, kwok: Process, namespace: str):
    name = f"node-{namespace[-6:]}"
    add_nodes(api_server, [node(name, gpus=8, labels={"topology.kubernetes.io/zone": "a"})])
    yield name
    api_server.kubectl("delete", "node", name)


def _status(server: ApiServer, namespace: str, name: str) -> dict:
    return server.get("pod", "-n", namespace, name)["status"]


def test_pod_security_refuses_a_privileged_pod(api_server: ApiServer, namespace: str) -> None:
    pod = _pod(namespace, "bad")
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}

    with pytest.raises(RuntimeError, match='violates PodSecurity "restricted'):
        api_server.apply(pod)


def test_the_scheduler_counts_gpus_and_kwok_runs_and_ends_the_pod(
    api_server: ApiServer, namespace: str, gpu_node: str
) -> None:
    api_server.apply(_pod(namespace, "first", gpus=8, on=gpu_node), _pod(namespace, "second", gpus=1, on=gpu_node))
    wait_until(lambda: _status(api_server, namespace, "first")["phase"] == "Running", "the first pod runs")
    wait_until(
        lambda: "Insufficient nvidia.com/gpu" in _status(api_server, namespace, "second")["conditions"][0]["message"],
        "the second pod waits for a GPU",
    )

    finish_pod(api_server, namespace, "first", exit_code=3, message='{"why": "told to"}')
    wait_until(lambda: _status(api_server, namespace, "first")["phase"] == "Failed", "the first pod failed")
    ended = _status(api_server, namespace, "first")["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (3, '{"why": "told to"}')

    wait_until(lambda: _status(api_server, namespace, "second")["phase"] == "Running", "the second pod took the GPU")


def test_a_held_pod_is_bound_but_never_ready(api_server: ApiServer, namespace: str, gpu_node: str) -> None:
    api_server.apply(
        _pod(namespace, "held", on=gpu_node, annotations={HOLD: "true"}), _pod(namespace, "free", on=gpu_node)
    )
    wait_until(lambda: _status(api_server, namespace, "free")["phase"] == "Running", "the free pod runs")

    assert _status(api_server, namespace, "held")["phase"] == "Pending"


def test_what_is_owned_goes_with_its_owner(api_server: ApiServer, namespace: str) -> None:
    meta = {"namespace": namespace, "name": "owner"}
    api_server.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    uid = api_server.get("configmap", "-n", namespace, "owner")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    owned = {"namespace": namespace, "name": "owned", "ownerReferences": [owner]}
    api_server.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": owned})

    api_server.kubectl("delete", "configmap", "-n", namespace, "owner")

    wait_until(
        lambda: not api_server.kubectl("get", "configmap", "-n", namespace, "owned", "--ignore-not-found"),
        "the owned config map is gone",
    )


def test_an_outage_keeps_port_and_data(api_server: ApiServer, namespace: str) -> None:
    url = api_server.url
    api_server.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": "kept"}})

    api_server.stop()
    with pytest.raises(RuntimeError, match="refused"):
        api_server.kubectl("get", "namespaces")
    api_server.start()

    assert api_server.url == url
    assert api_server.get("configmap", "-n", namespace, "kept")["metadata"]["name"] == "kept"
