"""A job that serves, under the real operator and API server: scaled, exchanged, late-bound; and a file of requests."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

import toolchain
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, finish_pod, node
from support.api_server.operatorprocess import OperatorProcess, condition, pods
from support.local.processes import Process, wait_until

pytestmark = pytest.mark.xdist_group("life")

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


def manifest(namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "pipelinejob.io/v1alpha1",
        "kind": "PipelineJob",
        "metadata": {"namespace": namespace, "name": "m"},
        "spec": {
            "mode": "Serve",
            "model": {"huggingFace": {"path": "/models/a"}, "numLayers": 4},
            "parallelism": {"pipeline": 2, "data": 1},
            "device": "cpu",
            **spec,
        },
    }


def status(server: ApiServer, namespace: str, name: str = "m") -> dict[str, Any]:
    found: dict[str, Any] = server.get("pipelinejob", "-n", namespace, name).get("status", {})
    return found


def fronts(server: ApiServer, namespace: str) -> list[dict[str, Any]]:
    """Return the pods that the Service leads to."""
    selector = server.get("service", "-n", namespace, "m-serve")["spec"]["selector"]
    chosen = ",".join(f"{label}={value}" for label, value in selector.items())
    found: list[dict[str, Any]] = server.get("pods", "-n", namespace, "-l", chosen)["items"]
    return found


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


def test_the_documented_inference_pool_is_taken_by_the_api_server_and_has_the_services_pods(
    api_server: ApiServer, operator: OperatorProcess, kwok: Process, namespace: str
) -> None:
    toolchain.provide((toolchain.INFERENCE_POOL_CRD,))
    api_server.kubectl("apply", "--server-side", "-f", toolchain.find(toolchain.INFERENCE_POOL_CRD))
    blocks = re.findall(r"(?:^    .*\n|^\n)+", DOCS.read_text(), re.MULTILINE)
    (text,) = [block for block in blocks if "kind: InferencePool" in block]
    pool, job = yaml.safe_load_all(textwrap.dedent(text).replace("smollm2", "m"))
    for each in (pool, job):
        each["metadata"]["namespace"] = namespace
    served = manifest(namespace, template=job["spec"]["template"], serving={"port": 8123})
    wait_until(lambda: "inferencepools" in api_server.kubectl("api-resources", "-o", "name"), "pools are served")
    add_nodes(api_server, [node(f"pool-{namespace[-6:]}")])
    pool["spec"]["targetPorts"] = [{"number": 8123}]

    api_server.apply(served, pool)

    wait_until(lambda: status(api_server, namespace).get("state") == "Serving", "the job serves")
    stored = api_server.get("inferencepools.inference.networking.k8s.io", "-n", namespace, "m")
    chosen = ",".join(f"{name}={value}" for name, value in stored["spec"]["selector"]["matchLabels"].items())
    found = api_server.get("pods", "-n", namespace, "-l", chosen)["items"]
    ports = [port["containerPort"] for each in found for port in each["spec"]["containers"][0].get("ports", ())]
    assert [each["metadata"]["name"] for each in found] == [
        each["metadata"]["name"] for each in fronts(api_server, namespace)
    ]
    assert found[0]["metadata"]["labels"]["llm-d.ai/engine-type"] == "pipelinejob"
    assert 8123 in ports
    assert stored["spec"]["endpointPickerRef"]["failureMode"] == "FailClose"


def test_late_bound_chains_answer_behind_their_service_and_one_that_loses_a_pod_begins_anew(
    api_server: ApiServer, operator: OperatorProcess, kwok: Process, namespace: str
) -> None:
    own = {"fabric": namespace[-6:]}
    add_nodes(api_server, [node(f"late-{namespace[-6:]}-{number}", labels=own) for number in range(3)])
    late = {"scheduling": {"binding": "Late"}, "template": {"spec": {"nodeSelector": own}}}
    api_server.apply(manifest(namespace, parallelism={"pipeline": 3, "data": 2}, **late))

    def answers() -> bool:
        return condition(api_server, namespace, "m", "Ready")["message"].startswith("2 of 2 chain")

    wait_until(answers, "two chains answer")
    first = fronts(api_server, namespace)
    assert {each["metadata"]["annotations"]["pipelinejob.io/rank"] for each in first} == {"0/0"}
    assert {each["metadata"]["labels"]["pipelinejob.io/name"] for each in first} == {"m-0", "m-1"}
    for chain in ("m-0", "m-1"):
        found = pods(api_server, namespace, chain)
        assert {each["metadata"]["annotations"]["pipelinejob.io/rank"] for each in found} == {"0/0", "0/1", "0/2"}
        assert all(each["spec"]["nodeName"].startswith("late-") for each in found)

    lost = next(each for each in pods(api_server, namespace, "m-0") if _rank(each) == "0/1")
    api_server.kubectl("delete", "pod", "-n", namespace, lost["metadata"]["name"], "--wait=false")
    wait_until(lambda: status(api_server, namespace, "m-0")["attempt"] == 2, "its chain begins anew")
    wait_until(lambda: status(api_server, namespace, "m-0")["state"] == "Serving", "it answers again")
    wait_until(answers, "two chains answer again")
    wait_until(lambda: len(fronts(api_server, namespace)) == 2, "both are behind the service")
    assert status(api_server, namespace, "m-1")["attempt"] == 1


def _rank(pod: dict[str, Any]) -> str:
    rank: str = pod["metadata"]["annotations"]["pipelinejob.io/rank"]
    return rank


def test_a_batch_is_a_job_that_ends_with_its_first_stage_and_begins_anew_with_a_lost_pod(
    api_server: ApiServer, operator: OperatorProcess, kwok: Process, namespace: str
) -> None:
    add_nodes(api_server, [node(f"batch-{namespace[-6:]}")])
    mounted = [{"name": "trainer", "volumeMounts": [{"name": "work", "mountPath": "/work"}]}]
    batch = {
        "mode": "Batch",
        "parallelism": {"pipeline": 3},
        "serving": {"batch": {"input": "/work/in.jsonl", "output": "/work/out.jsonl"}},
        "template": {"spec": {"containers": mounted, "volumes": [{"name": "work", "emptyDir": {}}]}},
    }
    api_server.apply(manifest(namespace, **batch))

    wait_until(lambda: status(api_server, namespace).get("state") == "Serving", "it answers")
    found = pods(api_server, namespace, "m")
    assert {each["metadata"]["name"] for each in found} == {"m-r0-s0", "m-r0-s1", "m-r0-s2"}
    assert {each["spec"]["restartPolicy"] for each in found} == {"OnFailure"}
    assert {each["metadata"]["name"] for each in api_server.get("services", "-n", namespace)["items"]} == {"m"}

    api_server.kubectl("delete", "pod", "-n", namespace, "m-r0-s1", "--wait=false")
    wait_until(lambda: status(api_server, namespace)["attempt"] == 2, "all begin anew")
    wait_until(lambda: status(api_server, namespace)["state"] == "Serving", "it goes on")

    finish_pod(api_server, namespace, "m-r0-s0", exit_code=0)
    wait_until(lambda: status(api_server, namespace)["state"] == "Succeeded", "all are answered")
    assert condition(api_server, namespace, "m", "Succeeded")["message"] == "all requests are answered"
    assert status(api_server, namespace)["progress"] == "100%"
    wait_until(
        lambda: {each["metadata"]["name"] for each in pods(api_server, namespace, "m")} == {"m-r0-s0"},
        "the other stages let their nodes go",
    )


def test_a_batch_whose_file_is_wrong_fails_in_its_own_words(
    api_server: ApiServer, operator: OperatorProcess, kwok: Process, namespace: str
) -> None:
    add_nodes(api_server, [node(f"wrong-{namespace[-6:]}")])
    batch = {"mode": "Batch", "serving": {"batch": {"input": "/in.jsonl", "output": "/out.jsonl"}}}
    api_server.apply(manifest(namespace, **batch))
    wait_until(lambda: status(api_server, namespace).get("state") == "Serving", "it is up")

    said = "spec.serving.batch.input: /in.jsonl, line 3 is no JSON; nothing was answered, mend it first"
    words = {"exitCode": 64, "reason": "BadRequests", "message": said, "step": 0}
    finish_pod(api_server, namespace, "m-r0-s0", exit_code=64, message=json.dumps(words))

    wait_until(lambda: status(api_server, namespace)["state"] == "Failed", "it fails")
    assert said in condition(api_server, namespace, "m", "Succeeded")["message"]
    assert status(api_server, namespace).get("restarts", 0) == 0
