"""What the API server and the scheduler make of a gang's pods: nothing of it is undone, and no place is tried in vain.

Policies, RuntimeClasses, LimitRanges and the scheduler are the real ones; kwok plays the kubelets.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import condition, is_placed, job, pods
from support.local.processes import Process, wait_until

pytestmark = pytest.mark.xdist_group("life")

_POOL = "test.pipelinejob.io/pool"
_ALLOCATE = "test.pipelinejob.io/sandbox"


@pytest.fixture
def made(api_server: ApiServer, kwok: Process, namespace: str):
    """Makes objects of the whole cluster; they go with the test, before its namespace."""
    objects: list[dict[str, Any]] = []

    def make(*items: dict[str, Any]) -> None:
        objects.extend(items)
        nodes = [item for item in items if item["kind"] == "Node"]
        if nodes:
            add_nodes(api_server, nodes)
        if len(nodes) < len(items):
            api_server.apply(*(item for item in items if item["kind"] != "Node"))

    yield make
    for item in reversed(objects):
        api_server.kubectl("delete", item["kind"], item["metadata"]["name"], "--ignore-not-found", "--wait=false")


def mutation(namespace: str, expression: str) -> list[dict[str, Any]]:
    """A policy that changes the pods of one namespace as they are created, as a webhook would."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    version = "admissionregistration.k8s.io/v1"
    policy = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"namespaceSelector": selector, "resourceRules": [rule]},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
        },
    }
    binding = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": namespace},
        "spec": {"policyName": namespace},
    }
    return [policy, binding]


IMAGE = (
    '[JSONPatch{op: "replace", path: "/spec/containers/0/image", '
    'value: "mirror.corp/" + object.spec.containers[0].image}]'
)
TOLERATION = (
    '[JSONPatch{op: "add", path: "/spec/tolerations/-", '
    'value: Object.spec.tolerations{key: "sandbox", operator: "Exists", effect: "NoSchedule"}}]'
)
MEMORY = '[JSONPatch{op: "replace", path: "/spec/containers/0/resources/requests/memory", value: "20Gi"}]'
TAINTED = {"taints": [{"key": "sandbox", "value": "kata", "effect": "NoSchedule"}]}


def is_mutated_by(server: ApiServer, namespace: str, says) -> bool:
    """Tell whether the policy is in force: the API server takes moments to see one."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": namespace},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "tolerations": [{"key": "x", "operator": "Exists"}],
            "containers": [
                {
                    "name": "x",
                    "image": "x",
                    "resources": {"requests": {"memory": "1Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }

    answer = server.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod))
    return says(json.loads(answer)["spec"])


def is_running(server: ApiServer, namespace: str, ranks: int) -> bool:
    found = pods(server, namespace, "gpt")
    return is_placed(server, namespace, "gpt", ranks=ranks) and all(
        pod["status"].get("phase") == "Running" for pod in found
    )


@pytest.mark.parametrize(
    "change",
    [
        (IMAGE, lambda spec: spec["containers"][0]["image"].startswith("mirror.corp/")),
        (TOLERATION, lambda spec: any(each.get("key") == "sandbox" for each in spec["tolerations"])),
        (MEMORY, lambda spec: spec["containers"][0]["resources"]["requests"]["memory"] == "20Gi"),
    ],
    ids=["image", "toleration", "request"],
)
def test_a_gang_trains_as_a_policy_changed_it(api_server, operator, namespace, made, change):
    """One node suits the pods as they are written, the other as they are admitted."""
    expression, says = change
    poor, rich = f"poor-{namespace[-6:]}", f"rich-{namespace[-6:]}"
    small = node(poor, gpus=2 if expression == MEMORY else 0, memory="16Gi")
    large = node(rich, gpus=2)
    made(small, {**large, "spec": TAINTED} if expression == TOLERATION else large)
    made(*mutation(namespace, expression))
    wait_until(lambda: is_mutated_by(api_server, namespace, says), "the policy is in force")

    api_server.apply(job(namespace, "gpt", stages=2))
    wait_until(lambda: is_running(api_server, namespace, 2), "the job runs")

    found = pods(api_server, namespace, "gpt")
    assert all(says(pod["spec"]) for pod in found)
    assert {pod["spec"]["nodeName"] for pod in found} == {rich}
    assert api_server.get("pipelinejob", "-n", namespace, "gpt")["status"]["attempt"] == 1


def test_a_runtime_class_counts_with_its_overhead_its_nodes_and_its_tolerations(api_server, operator, namespace, made):
    poor, rich, other = (f"{word}-{namespace[-6:]}" for word in ("poor", "rich", "other"))
    labels = {_ALLOCATE: "kata"}
    made(
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": namespace},
            "handler": "kata",
            "overhead": {"podFixed": {"memory": "6Gi", "cpu": "1"}},
            "scheduling": {
                "nodeSelector": labels,
                "tolerations": [{"key": "sandbox", "operator": "Equal", "value": "kata", "effect": "NoSchedule"}],
            },
        },
        node(other, gpus=8),
        {**node(poor, gpus=1, memory="8Gi", labels=labels), "spec": TAINTED},
        {**node(rich, gpus=1, labels=labels), "spec": TAINTED},
    )
    template = {
        "spec": {
            "runtimeClassName": namespace,
            "containers": [{"name": "trainer", "resources": {"requests": {"memory": "4Gi"}}}],
        }
    }
    api_server.apply(job(namespace, "gpt", stages=1, template=template))
    wait_until(lambda: is_running(api_server, namespace, 1), "the job runs")

    (pod,) = pods(api_server, namespace, "gpt")
    assert pod["spec"]["nodeName"] == rich
    assert pod["spec"]["nodeSelector"] == labels
    assert pod["spec"]["overhead"] == {"cpu": "1", "memory": "6Gi"}
    assert [each for each in pod["spec"]["tolerations"] if each.get("key") == "sandbox"]


def test_what_a_limit_range_fills_in_counts(api_server, operator, namespace, made):
    poor, rich = f"poor-{namespace[-6:]}", f"rich-{namespace[-6:]}"
    made(node(poor, gpus=1, memory="8Gi"), node(rich, gpus=1))
    limit = {"type": "Container", "defaultRequest": {"memory": "30Gi"}, "default": {"memory": "30Gi"}}
    api_server.apply(
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "defaults", "namespace": namespace},
            "spec": {"limits": [limit]},
        }
    )
    template = {"spec": {"containers": [{"name": "trainer"}, {"name": "shipper", "image": "x", **_harmless()}]}}
    api_server.apply(job(namespace, "gpt", stages=1, template=template))
    wait_until(lambda: is_running(api_server, namespace, 1), "the job runs")

    assert [pod["spec"]["nodeName"] for pod in pods(api_server, namespace, "gpt")] == [rich]


def _harmless() -> dict[str, Any]:
    return {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}


ANTI_AFFINITY = {
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "labelSelector": {"matchLabels": {"pipelinejob.io/name": "gpt"}},
                    "topologyKey": "kubernetes.io/hostname",
                }
            ]
        }
    }
}
HOST_NETWORK = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}


@pytest.mark.parametrize("spec", [ANTI_AFFINITY, HOST_NETWORK], ids=["anti-affinity", "host network"])
def test_stages_that_the_scheduler_would_not_put_together_go_apart(api_server, operator, namespace, made, spec):
    api_server.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce-", "--overwrite")
    made(*(node(f"n{number}-{namespace[-6:]}", gpus=8) for number in range(2)))
    api_server.apply(job(namespace, "gpt", stages=2, template={"spec": spec}))
    wait_until(lambda: is_running(api_server, namespace, 2), "the job runs")

    assert len({pod["spec"]["nodeName"] for pod in pods(api_server, namespace, "gpt")}) == 2


def test_a_gang_goes_where_its_volume_can_be_reached(api_server, operator, namespace, made):
    near, far = f"near-{namespace[-6:]}", f"far-{namespace[-6:]}"
    made(node(near, gpus=4, labels={_POOL: "near"}), node(far, gpus=4, labels={_POOL: "far"}))
    reach = {"matchExpressions": [{"key": _POOL, "operator": "In", "values": ["far"]}]}
    made(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": namespace},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "hostPath": {"path": "/data"},
                "claimRef": {"namespace": namespace, "name": "shared"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [reach]}},
            },
        }
    )
    api_server.apply(job(namespace, "gpt", stages=2, checkpoint={"volume": {"claimName": "shared"}}))
    wait_until(lambda: condition(api_server, namespace, "gpt", "Placed")["reason"] == "NoVolume", "the claim is missed")
    api_server.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "shared", "namespace": namespace, "annotations": _BOUND},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": namespace,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    for kind, name in (("pv", namespace), ("pvc", "shared")):  # no controller binds volumes here
        scope = ("-n", namespace) if kind == "pvc" else ()
        patch = '{"status": {"phase": "Bound"}}'
        api_server.kubectl("patch", kind, *scope, name, "--subresource=status", "--type=merge", "-p", patch)
    wait_until(lambda: is_running(api_server, namespace, 2), "the job runs")

    assert {pod["spec"]["nodeName"] for pod in pods(api_server, namespace, "gpt")} == {far}


_BOUND = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
