"""Nodes without machines: kwok plays the kubelet of each, so pods bound to them get ready, end as told and are deleted.

A pod ends when it is told to (`finish_pod`), and never gets ready while it carries `HOLD`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import toolchain
from support.api_server.apiserver import ApiServer
from support.local.processes import Process

HOLD = "test.pipelinejob.io/hold"
_EXIT_CODE = "test.pipelinejob.io/exit-code"
_MESSAGE = "test.pipelinejob.io/termination-message"


def start_kwok(server: ApiServer) -> Process:
    """Run kwok beside the server, for every node there is or will be."""
    config = server.folder / "kwok.yaml"
    config.write_text("\n---\n".join(json.dumps(stage) for stage in (_NODE_KNOWN, _POD_READY, _POD_DONE, _POD_GONE)))
    flags = [
        f"--kubeconfig={server.kubeconfig}",
        "--manage-all-nodes=true",
        f"--config={config}",
        "--cidr=10.200.0.0/16",
    ]
    return server.start_component("kwok", flags, binary=toolchain.find("kwok"))


def node(
    name: str,
    *,
    gpus: int = 0,
    labels: Mapping[str, str] | None = None,
    cpu: str = "64",
    memory: str = "512Gi",
    pods: int = 110,
) -> dict[str, Any]:
    """Return a ready Node with its capacity, for `add_nodes`."""
    capacity = {"cpu": cpu, "memory": memory, "pods": str(pods), **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "pretended"}],
            "addresses": [{"type": "Hostname", "address": name}],
        },
    }


def add_nodes(server: ApiServer, nodes: Iterable[Mapping[str, Any]]) -> None:
    """Create nodes with their status, which `kubectl create` keeps for nodes."""
    items = list(nodes)
    server.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def finish_pod(server: ApiServer, namespace: str, name: str, *, exit_code: int, message: str = "") -> None:
    """Let the pod's containers end with this exit code and termination message; needs kwok."""
    notes = [f"{_EXIT_CODE}={exit_code}", f"{_MESSAGE}={message}"]
    server.kubectl("annotate", "pod", "-n", namespace, name, "--overwrite", *notes)


def _stage(
    name: str, kind: str, requirements: list[tuple[str, str, list[str]]], following: Mapping[str, Any]
) -> dict[str, Any]:
    expressions = [
        {"key": key, "operator": operator, **({"values": values} if values else {})}
        for key, operator, values in requirements
    ]
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": expressions},
            "next": following,
        },
    }


_READY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
_ALIVE = (".metadata.deletionTimestamp", "DoesNotExist", [])

# Our nodes are ready from the start; but kwok plays only pods on nodes that some stage speaks of.
_NODE_KNOWN = _stage("node-known", "Node", [(_READY, "NotIn", ["True"])], {"statusTemplate": "phase: Running"})

_POD_READY = _stage(
    "pod-ready",
    "Pod",
    [
        _ALIVE,
        (".status.phase", "In", ["Pending"]),
        (_READY, "NotIn", ["True"]),
        (f'.metadata.annotations["{HOLD}"]', "DoesNotExist", []),
    ],
    {
        "statusTemplate": """
{{ $now := Now | Quote }}
phase: Running
startTime: {{ $now }}
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ $now }}}
- {type: Ready, status: "True", lastTransitionTime: {{ $now }}}
- {type: ContainersReady, status: "True", lastTransitionTime: {{ $now }}}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, ready: true, started: true, restartCount: 0,
   state: {running: {startedAt: {{ $now }}}}}
{{ end }}
{{ $ips := PodIPsWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace }}
podIP: {{ index $ips 0 | Quote }}
podIPs: [{ip: {{ index $ips 0 | Quote }}}]
"""
    },
)

_POD_DONE = _stage(
    "pod-done",
    "Pod",
    [_ALIVE, (".status.phase", "In", ["Running"]), (f'.metadata.annotations["{_EXIT_CODE}"]', "Exists", [])],
    {
        "statusTemplate": f"""
{{{{ $now := Now | Quote }}}}
{{{{ $code := index .metadata.annotations "{_EXIT_CODE}" }}}}
{{{{ $message := index .metadata.annotations "{_MESSAGE}" }}}}
phase: {{{{ if eq $code "0" }}}}Succeeded{{{{ else }}}}Failed{{{{ end }}}}
conditions:
- {{type: Initialized, status: "True", lastTransitionTime: {{{{ $now }}}}}}
- {{type: Ready, status: "False", lastTransitionTime: {{{{ $now }}}}}}
- {{type: ContainersReady, status: "False", lastTransitionTime: {{{{ $now }}}}}}
containerStatuses:
{{{{ range .spec.containers }}}}
- {{name: {{{{ .name | Quote }}}}, image: {{{{ .image | Quote }}}}, ready: false, started: false, restartCount: 0,
   state: {{terminated: {{exitCode: {{{{ $code }}}}, message: {{{{ $message | Quote }}}},
   reason: {{{{ if eq $code "0" }}}}Completed{{{{ else }}}}Error{{{{ end }}}}, startedAt: {{{{ $now }}}},
   finishedAt: {{{{ $now }}}}}}}}}}
{{{{ end }}}}
"""
    },
)

_POD_GONE = _stage("pod-gone", "Pod", [(".metadata.deletionTimestamp", "Exists", [])], {"delete": True})
