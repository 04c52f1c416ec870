"""Kueue's own manager beside the tests' API server, and the objects of its quotas.

Its webhooks are served but not registered: an API server on loopback cannot reach a service. They
would only refuse and default what these objects state. The manager makes its own certificates and
waits until a kubelet mounts them; here `start_kueue` does.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import toolchain
from support.api_server.apiserver import ApiServer
from support.local.processes import Process, free_ports, wait_until

NAMESPACE = "kueue-system"
_SERVICE, _SECRET = "kueue-webhook-service", "kueue-webhook-server-cert"
API = "kueue.x-k8s.io/v1beta2"
# The manager works only once it has put its certificate authority in there. Nobody asks for an
# older version.
_CONVERTED = ("localqueues", "clusterqueues", "workloads", "cohorts", "multikueueclusters")
_CONVERSION = {
    "strategy": "Webhook",
    "webhook": {
        "clientConfig": {"service": {"name": _SERVICE, "namespace": NAMESPACE, "path": "/convert"}},
        "conversionReviewVersions": ["v1"],
    },
}


def install_crds(server: ApiServer) -> None:
    """Have the API server serve Kueue's kinds."""
    server.kubectl("apply", "--server-side", "-f", toolchain.manifests(toolchain.KUEUE_MANAGER))
    wait_until(lambda: _is_served(server), "Kueue's kinds are served")


def start_kueue(server: ApiServer, **configuration: Any) -> Process:
    """Run the manager, with more or other fields of its configuration where given; given back once it works."""
    install_crds(server)
    server.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": _SECRET, "namespace": NAMESPACE}},
    )
    for plural in _CONVERTED:
        patch = {"spec": {"conversion": _CONVERSION}}
        server.kubectl("patch", "crd", f"{plural}.kueue.x-k8s.io", "--type=merge", "-p", json.dumps(patch))
    health, webhook = free_ports(2)
    certificates = server.folder / "kueue-certificates"
    certificates.mkdir()
    config = server.folder / "kueue.json"
    config.write_text(json.dumps(_configuration(health, webhook, certificates) | configuration))
    manager = server.start_component(
        "kueue",
        [
            f"--config={config}",
            f"--kubeconfig={server.kubeconfig}",
            "--feature-gates=VisibilityOnDemand=false",
            "--zap-log-level=2",
        ],
        binary=toolchain.find(toolchain.KUEUE_MANAGER),
    )
    try:
        wait_until(lambda: _mount(server, certificates), "Kueue's certificates are made")
        wait_until(lambda: "Starting workers" in manager.log.read_text(), "Kueue works", timeout_s=120)
    except TimeoutError as error:
        raise RuntimeError(f"{error}\n{manager.tail()}") from error
    return manager


def flavor(name: str, **labels: str) -> dict[str, Any]:
    """Return a ResourceFlavor of the nodes with these labels."""
    return _object("ResourceFlavor", name, nodeLabels={key.replace("__", "/"): value for key, value in labels.items()})


def cluster_queue(name: str, *, flavors: dict[str, int], cohort: str | None = None, **spec: Any) -> dict[str, Any]:
    """Return a ClusterQueue with a quota of GPUs in each flavor, and processors and memory without end."""
    quotas = [
        {
            "name": each,
            "resources": [
                {"name": "nvidia.com/gpu", "nominalQuota": gpus},
                {"name": "cpu", "nominalQuota": 10_000},
                {"name": "memory", "nominalQuota": "10000Gi"},
            ],
        }
        for each, gpus in flavors.items()
    ]
    groups = [{"coveredResources": ["nvidia.com/gpu", "cpu", "memory"], "flavors": quotas}]
    more = {"cohortName": cohort} if cohort else {}
    return _object("ClusterQueue", name, resourceGroups=groups, namespaceSelector={}, **more, **spec)


def local_queue(name: str, namespace: str, *, of: str) -> dict[str, Any]:
    """Return a namespace its door to a ClusterQueue."""
    queue = _object("LocalQueue", name, clusterQueue=of)
    return {**queue, "metadata": {"name": name, "namespace": namespace}}


def priority_class(name: str, value: int) -> dict[str, Any]:
    """Return a WorkloadPriorityClass."""
    return {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}


def _object(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _configuration(health: int, webhook: int, certificates: Path) -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": _SERVICE,
            "webhookSecretName": _SECRET,
        },
        "integrations": {"frameworks": ["batch/job"]},
    }


def _mount(server: ApiServer, folder: Path) -> bool:
    data = server.get("secret", "-n", NAMESPACE, _SECRET).get("data") or {}
    for name, value in data.items():
        (folder / name).write_bytes(base64.b64decode(value))
    return bool(data)


def _is_served(server: ApiServer) -> bool:
    try:
        served = server.kubectl("api-resources", "--api-group=kueue.x-k8s.io", "-o", "name").split()
    except RuntimeError:  # some group is being discovered
        return False
    wanted = ("workloads", "clusterqueues", "localqueues", "resourceflavors", "workloadpriorityclasses")
    return all(f"{plural}.kueue.x-k8s.io" in served for plural in wanted)
