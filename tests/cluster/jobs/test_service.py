"""A job that serves, under the real operator and API server: scaled by kubectl, exchanged, within its budget."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, node
from support.api_server.operatorprocess import OperatorProcess, condition
from support.local.processes import Process, wait_until

pytestmark = pytest.mark.xdist_group("life")

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def operator(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory):
    with OperatorProcess(api_server.kubeconfig, tmp_path_factory.mktemp("operator")) as operator:
        yield operator
        assert operator.alive


def manifest(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "pipelinejob.io/v1alpha1",
        "kind": "PipelineJob",
        "metadata": {"namespace": namespace, "name": "m"},
        "spec": {
            "mode": "Serve",
            "model": {"huggingFace": {"path": "/models/a"}, "numLayers": 4},
            "parallelism": {"pipeline": 2, "data": 1},
            "device": "cpu",
        },
    }


def test_a_service_is_scaled_exchanged_and_kept_within_its_budget(
    api_server: ApiServer, operator: OperatorProcess, kwok: Process, namespace: str
) -> None:
    add_nodes(api_server, [node(f"serves-{namespace[-6:]}")])
    api_server.apply(manifest(namespace))

    def chains() -> set[str]:
        found = api_server.get("pipelinejobs", "-n", namespace, "-l", "pipelinejob.io/service=m")["items"]
        return {each["metadata"]["name"] for each in found}

    def answers(count: int) -> bool:
        said = condition(api_server, namespace, "m", "Ready")
        return said["message"].startswith(f"{count} of {count} chain")

    def budget() -> int:
        found: int = api_server.get("pdb", "-n", namespace, "m-serve")["spec"]["minAvailable"]
        return found

    wait_until(lambda: answers(1), "one chain answers")
    assert chains() == {"m-0"}
    assert budget() == 1

    api_server.kubectl("scale", "-n", namespace, "pipelinejob/m", "--replicas=2")
    wait_until(lambda: answers(2), "two chains answer")
    path = f"/apis/pipelinejob.io/v1alpha1/namespaces/{namespace}/pipelinejobs/m/scale"
    scale = json.loads(api_server.kubectl("get", "--raw", path))
    assert scale["status"]["replicas"] == 2
    fronts = api_server.get("pods", "-n", namespace, "-l", scale["status"]["selector"])["items"]
    assert {each["metadata"]["name"] for each in fronts} == {"m-0-r0-s0", "m-1-r0-s0"}
    wait_until(lambda: budget() == 3, "the budget follows")

    api_server.kubectl("scale", "-n", namespace, "pipelinejob/m", "--replicas=1")
    wait_until(lambda: chains() == {"m-0"}, "one chain is left")

    changed = '{"spec": {"model": {"huggingFace": {"path": "/models/b"}}}}'
    api_server.kubectl("patch", "-n", namespace, "pipelinejob", "m", "--type=merge", "-p", changed)
    wait_until(lambda: chains() == {"m-1"} and answers(1), "the chain is exchanged")

    api_server.kubectl("delete", "-n", namespace, "pipelinejob", "m")
    wait_until(lambda: not api_server.get("pods", "-n", namespace)["items"], "nothing is left")


def test_the_documented_autoscaler_is_taken_by_the_api_server(api_server: ApiServer, namespace: str) -> None:
    blocks = re.findall(r"(?:^    .*\n|^\n)+", DOCS.read_text(), re.MULTILINE)
    found = [yaml.safe_load(block) for block in blocks if "kind: HorizontalPodAutoscaler" in block]

    (autoscaler,) = found
    target = autoscaler["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "pipelinejob.io/v1alpha1", "kind": "PipelineJob", "name": "smollm2"}
    autoscaler["metadata"]["namespace"] = namespace
    api_server.apply(autoscaler)
    stored = api_server.get("hpa", "-n", namespace, autoscaler["metadata"]["name"])
    assert stored["spec"]["metrics"][0]["pods"]["metric"]["name"] == "pipelinejob_serving_requests_waiting"
