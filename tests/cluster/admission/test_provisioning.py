"""A waiting gang asks for nodes over the real API server: by ProvisioningRequests; their CRD stands here."""

from __future__ import annotations

import json

import pytest

from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import OperatorProcess, condition, is_placed, job, pods
from support.local.processes import Process, wait_until

# One worker, with the others whose operators would fight over its processor.
pytestmark = pytest.mark.xdist_group("life")

CLASS = "best-effort-atomic-scale-up.autoscaling.x-k8s.io"
_NAME = {
    "type": "string",
    "maxLength": 253,
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
}
_UNCHANGING = [{"rule": "self == oldSelf", "message": "Value is immutable"}]


def _text(**limits):
    return {"type": "string", **limits}


def _object(required, **properties):
    return {"type": "object", "required": required, "properties": properties}


# What autoscaling.x-k8s.io/v1 takes and refuses.
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "provisioningrequests.autoscaling.x-k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
    },
    "spec": {
        "group": "autoscaling.x-k8s.io",
        "scope": "Namespaced",
        "names": {
            "kind": "ProvisioningRequest",
            "listKind": "ProvisioningRequestList",
            "plural": "provisioningrequests",
            "singular": "provisioningrequest",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": _object(
                        ["spec"],
                        spec=_object(
                            ["podSets", "provisioningClassName"],
                            provisioningClassName={**_NAME, "x-kubernetes-validations": _UNCHANGING},
                            parameters={
                                "type": "object",
                                "maxProperties": 100,
                                "additionalProperties": _text(maxLength=255),
                                "x-kubernetes-validations": _UNCHANGING,
                            },
                            podSets={
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 32,
                                "x-kubernetes-validations": _UNCHANGING,
                                "items": _object(
                                    ["count", "podTemplateRef"],
                                    count={"type": "integer", "format": "int32", "minimum": 1},
                                    podTemplateRef=_object(["name"], name=_NAME),
                                ),
                            },
                        ),
                        status=_object(
                            [],
                            conditions={
                                "type": "array",
                                "x-kubernetes-list-type": "map",
                                "x-kubernetes-list-map-keys": ["type"],
                                "items": _object(
                                    ["lastTransitionTime", "message", "reason", "status", "type"],
                                    lastTransitionTime=_text(format="date-time"),
                                    message=_text(maxLength=32768),
                                    reason=_text(minLength=1, maxLength=1024),
                                    status={"type": "string", "enum": ["True", "False", "Unknown"]},
                                    type=_text(maxLength=316),
                                ),
                            },
                        ),
                    )
                },
            }
        ],
    },
}


@pytest.fixture(scope="module")
def served(api_server: ApiServer):
    """The API server with the autoscaler's kind, which goes again with this module."""
    api_server.apply(CRD)
    wait_until(lambda: api_server.get("provisioningrequests", "-A")["items"] == [], "the kind is served")
    yield api_server
    api_server.kubectl("delete", "crd", CRD["metadata"]["name"])


@pytest.fixture(scope="module")
def operator(served: ApiServer, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("operator")
    with OperatorProcess(served.kubeconfig, folder, "--provisioning") as operator:
        yield operator
        assert operator.alive


@pytest.fixture
def new_nodes(served: ApiServer, kwok: Process, namespace: str):
    made: list[str] = []

    def make(count: int) -> None:
        names = [f"made-{len(made) + n}-{namespace[-6:]}" for n in range(count)]
        made.extend(names)
        add_nodes(served, [node(name, gpus=1) for name in names])

    yield make
    served.kubectl("delete", "node", "--ignore-not-found", *made)


def only(server: ApiServer, namespace: str, kind: str):
    (found,) = server.get(kind, "-n", namespace)["items"]
    return found


def answer(server: ApiServer, namespace: str, kind: str, message: str) -> None:
    """Say what cluster-autoscaler would."""
    name = only(server, namespace, "provisioningrequests")["metadata"]["name"]
    told = {"type": kind, "status": "True", "reason": kind, "message": message}
    patch = {"status": {"conditions": [{**told, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}
    server.kubectl(
        "patch", "provisioningrequest", "-n", namespace, name, "--subresource=status", "--type=merge",
        "-p", json.dumps(patch),
    )  # fmt: skip


def asks(server: ApiServer, namespace: str) -> bool:
    return bool(server.get("provisioningrequests", "-n", namespace)["items"]) and bool(
        server.get("podtemplates", "-n", namespace)["items"]
    )


def says(server: ApiServer, namespace: str, words: str) -> bool:
    return words in condition(server, namespace, "gpt", "Placed")["message"]


def test_a_gang_gets_the_nodes_that_it_asked_for_and_asks_no_more(served, operator, namespace, new_nodes):
    parameters = {"ValidUntilSeconds": "3600"}
    served.apply(job(namespace, "gpt", stages=2, scheduling={"provisioning": {"parameters": parameters}}))
    wait_until(lambda: asks(served, namespace), "it asks for nodes")
    made, template = only(served, namespace, "provisioningrequests"), only(served, namespace, "podtemplates")
    name = made["metadata"]["name"]
    assert made["spec"] == {
        "provisioningClassName": CLASS,
        "parameters": parameters,
        "podSets": [{"count": 2, "podTemplateRef": {"name": template["metadata"]["name"]}}],
    }
    assert template["template"]["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "1"
    wait_until(lambda: says(served, namespace, f"ProvisioningRequest {name}"), "it says so")

    answer(served, namespace, "Provisioned", "2 nodes are there")
    wait_until(lambda: says(served, namespace, "provisioned; waits until the nodes are ready"), "it says that, too")
    new_nodes(2)

    wait_until(lambda: is_placed(served, namespace, "gpt", ranks=2), "it runs on them")
    annotations = [pod["metadata"]["annotations"] for pod in pods(served, namespace, "gpt")]
    assert [each["autoscaling.x-k8s.io/consume-provisioning-request"] for each in annotations] == [name, name]
    assert [each["autoscaling.x-k8s.io/provisioning-class-name"] for each in annotations] == [CLASS, CLASS]
    wait_until(lambda: not served.get("provisioningrequests", "-n", namespace)["items"], "it asks no more")
    wait_until(lambda: not served.get("podtemplates", "-n", namespace)["items"], "the templates went with it")


def test_a_failure_is_told_and_asked_anew_after_a_while(served, operator, namespace):
    served.apply(job(namespace, "gpt", stages=2, scheduling={"provisioning": {}}))
    wait_until(lambda: asks(served, namespace), "it asks for nodes")
    before = only(served, namespace, "provisioningrequests")["metadata"]["uid"]

    answer(served, namespace, "Failed", "no quota in zone a")  # long ago

    wait_until(
        lambda: (
            asks(served, namespace) and only(served, namespace, "provisioningrequests")["metadata"]["uid"] != before
        ),
        "it asks anew",
    )


def test_a_suspended_job_takes_its_request_back(served, operator, namespace):
    served.apply(job(namespace, "gpt", stages=2, scheduling={"provisioning": {}}))
    wait_until(lambda: asks(served, namespace), "it asks for nodes")

    served.kubectl("patch", "pipelinejob", "-n", namespace, "gpt", "--type=merge", "-p", '{"spec":{"suspend":true}}')

    wait_until(lambda: not served.get("provisioningrequests", "-n", namespace)["items"], "it asks no more")
