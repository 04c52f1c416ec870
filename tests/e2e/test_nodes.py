"""The nodes themselves: what the operator and the trainer will rely on."""

from __future__ import annotations

import json

import pytest

import images
import nodes
from support.local.processes import wait_until

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]

NAMESPACE = "smoke"
_PROGRAM = """
import json, socket, time, torch
deadline = time.monotonic() + 60
found = {}
while len(found) < 2 and time.monotonic() < deadline:
    for name in ("smoke-0.smoke", "smoke-1.smoke"):
        try:
            found[name] = socket.gethostbyname(name)
        except OSError:
            time.sleep(0.2)
addresses = len(set(found.values()))
print(json.dumps({"sum": float(torch.ones(8).sum()), "names": sorted(found), "addresses": addresses}), flush=True)
time.sleep(600)
"""


def _pod(number: int) -> dict:
    container = {
        "name": "smoke",
        "image": images.TORCH,
        "command": ["/opt/pipelinejob/bin/python3", "-c", _PROGRAM],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": f"smoke-{number}", "labels": {"app": "smoke"}},
        "spec": {
            "hostname": f"smoke-{number}",
            "subdomain": "smoke",
            "nodeSelector": {"kubernetes.io/hostname": f"node-{number + 1}"},
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def test_torch_runs_and_names_resolve_on_both_nodes(cluster: nodes.Cluster) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.server.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": "smoke"},
            "spec": {"clusterIP": "None", "selector": {"app": "smoke"}, "publishNotReadyAddresses": True},
        },
        _pod(0),
        _pod(1),
    )

    def said(number: int) -> str:
        return cluster.server.kubectl("logs", "-n", NAMESPACE, f"smoke-{number}").strip()

    for number in (0, 1):
        wait_until(lambda number=number: said(number), f"pod {number} speaks", timeout_s=180, poll_s=1)
        assert json.loads(said(number)) == {"sum": 8.0, "names": ["smoke-0.smoke", "smoke-1.smoke"], "addresses": 2}
    cluster.server.kubectl("delete", "namespace", NAMESPACE)


def test_gpus_that_do_not_exist_are_counted(cluster: nodes.Cluster) -> None:
    cluster.set_gpus("node-1", 8)

    wait_until(
        lambda: cluster.server.get("node", "node-1")["status"]["allocatable"].get("nvidia.com/gpu") == "8",
        "the kubelet keeps the GPUs",
        timeout_s=60,
    )
    cluster.set_gpus("node-1", 0)
