"""A job's life under the real operator, API server, scheduler and garbage collector; kwok plays the kubelets.

The namespace enforces Pod Security `restricted` throughout.
"""

from __future__ import annotations

import json
from itertools import takewhile
from typing import Any

import pytest

from pipelinejob.base.names import PLAN_FILE, plan_name
from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import LayerCost, Profile
from pipelinejob_operator.objects.costs import costs_config_map
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import add_nodes, finish_pod, node
from support.api_server.operatorprocess import OperatorProcess, condition, is_placed, job, pods
from support.api_server.podhistory import PodHistory
from support.local.processes import Process, wait_until

# One worker for all: they share an operator, or fight over its processor time.
pytestmark = pytest.mark.xdist_group("life")

STAGES = 4


@pytest.fixture
def new_node(api_server: ApiServer, kwok: Process, namespace: str):
    """Makes the test's nodes; they go with the test."""
    made = []

    def make(gpus: int) -> str:
        made.append(f"node-{len(made)}-{namespace[-6:]}")
        add_nodes(api_server, [node(made[-1], gpus=gpus)])
        return made[-1]

    yield make
    api_server.kubectl("delete", "node", "--ignore-not-found", *made)


@pytest.fixture
def running(api_server: ApiServer, operator: OperatorProcess, namespace: str, new_node):
    """A job of four stages that runs on one node."""
    new_node(gpus=STAGES)
    api_server.apply(job(namespace, "gpt", stages=STAGES))
    wait_until(lambda: is_running(api_server, namespace), "the job runs")
    return "gpt"


def is_running(server: ApiServer, namespace: str, name: str = "gpt", *, ranks: int = STAGES) -> bool:
    found = pods(server, namespace, name)
    return is_placed(server, namespace, name, ranks=ranks) and all(
        pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"] for pod in found
    )


def status(server: ApiServer, namespace: str, name: str = "gpt") -> dict[str, Any]:
    return server.get("pipelinejob", "-n", namespace, name).get("status", {})


def reasons(server: ApiServer, namespace: str) -> set[str]:
    return {event["reason"] for event in server.get("events", "-n", namespace)["items"]}


def test_a_job_without_room_says_what_is_missing_and_holds_nothing(api_server, operator, namespace, new_node):
    new_node(gpus=STAGES - 1)
    api_server.apply(job(namespace, "gpt", stages=STAGES))

    wait_until(lambda: condition(api_server, namespace, "gpt", "Placed")["status"] == "False", "it is not placed")
    assert "nvidia.com/gpu" in condition(api_server, namespace, "gpt", "Placed")["message"]
    assert all(not pod["spec"].get("nodeName") for pod in pods(api_server, namespace, "gpt"))


def test_a_job_that_waits_is_placed_when_a_node_comes(api_server, operator, namespace, new_node):
    new_node(gpus=STAGES - 1)
    api_server.apply(job(namespace, "gpt", stages=STAGES))
    wait_until(lambda: condition(api_server, namespace, "gpt", "Placed")["status"] == "False", "it is not placed")

    new_node(gpus=1)

    wait_until(lambda: is_running(api_server, namespace), "it runs")


def test_a_job_waits_for_the_costs_that_it_names_and_is_planned_with_them(api_server, operator, namespace, new_node):
    new_node(gpus=STAGES)
    api_server.apply(job(namespace, "gpt", stages=STAGES, costs={"configMap": "measured"}))
    wait_until(lambda: condition(api_server, namespace, "gpt", "Placed")["status"] == "False", "it is not placed")
    said = condition(api_server, namespace, "gpt", "Placed")["message"]

    api_server.apply(costs_config_map(costs(STAGES + 2), name="measured", namespace=namespace))

    wait_until(lambda: is_running(api_server, namespace), "it runs")
    plan = json.loads(api_server.get("configmap", "-n", namespace, plan_name("gpt"))["data"][PLAN_FILE])
    assert "config map measured is not in the job's namespace" in said
    assert plan["prediction"]["source"] == "profiled"


def costs(num_layers: int) -> Profile:
    layer = LayerCost(
        name="x",
        forward_s=0.1,
        backward_input_s=0.1,
        backward_weight_s=0.1,
        parameter_bytes=100,
        activation_bytes=10,
        output_bytes=1,
    )
    return Profile(source=CostSource.PROFILED, layers=(layer,) * num_layers)


def test_every_pod_is_made_with_the_gate_and_none_is_released_before_all_are_there(
    api_server, operator, namespace, new_node
):
    new_node(gpus=STAGES)
    with PodHistory(api_server, namespace) as history:
        api_server.apply(job(namespace, "gpt", stages=STAGES))
        wait_until(lambda: is_running(api_server, namespace), "it runs")
        wait_until(
            lambda: not all(is_gated(pod) for there in history.moments() for pod in there.values()), "it was watched"
        )

    gated = list(takewhile(lambda there: all(map(is_gated, there.values())), history.moments()))
    assert set(gated[-1]) == {f"gpt-r0-s{stage}" for stage in range(STAGES)}
    assert not any(pod["spec"].get("nodeName") for there in gated for pod in there.values())


def is_gated(pod: dict[str, Any]) -> bool:
    return bool(pod["spec"].get("schedulingGates"))


def test_a_job_runs_one_pod_a_stage_each_owned_by_it(api_server, namespace, running):
    owner = api_server.get("pipelinejob", "-n", namespace, running)["metadata"]["uid"]
    found = pods(api_server, namespace, running)

    assert {pod["metadata"]["name"] for pod in found} == {f"gpt-r0-s{stage}" for stage in range(STAGES)}
    assert {pod["metadata"]["ownerReferences"][0]["uid"] for pod in found} == {owner}


def test_a_job_whose_stages_all_end_well_has_succeeded(api_server, namespace, running):
    for stage in range(STAGES):
        finish_pod(api_server, namespace, f"gpt-r0-s{stage}", exit_code=0)

    wait_until(lambda: condition(api_server, namespace, running, "Succeeded")["status"] == "True", "it succeeded")
    assert status(api_server, namespace)["state"] == "Succeeded"
    assert "completionTime" in status(api_server, namespace)


def test_a_stage_that_fails_restarts_the_gang_as_the_next_attempt(api_server, namespace, running):
    before = {pod["metadata"]["uid"] for pod in pods(api_server, namespace, running)}
    attempt = status(api_server, namespace)["attempt"]
    finish_pod(api_server, namespace, "gpt-r0-s2", exit_code=1)

    wait_until(
        lambda: (
            is_running(api_server, namespace)
            and not before & {pod["metadata"]["uid"] for pod in pods(api_server, namespace, running)}
        ),
        "a new gang runs",
    )
    assert status(api_server, namespace)["attempt"] == attempt + 1
    assert status(api_server, namespace)["restarts"] == 1


def test_a_users_error_fails_the_job_at_once_with_the_stages_own_words(api_server, namespace, running):
    words = {"exitCode": 64, "reason": "DataNotFound", "message": "no file matches /data/*.txt", "step": 0}
    finish_pod(api_server, namespace, "gpt-r0-s0", exit_code=64, message=json.dumps(words))

    wait_until(lambda: condition(api_server, namespace, running, "Succeeded")["status"] == "False", "it failed")
    assert "no file matches /data/*.txt" in condition(api_server, namespace, running, "Succeeded")["message"]
    assert status(api_server, namespace)["restarts"] == 0


def test_a_suspended_job_releases_all_and_goes_on_when_resumed(api_server, namespace, running):
    api_server.kubectl("patch", "pj", "-n", namespace, running, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait_until(lambda: not pods(api_server, namespace, running), "no pod is left")
    wait_until(lambda: condition(api_server, namespace, running, "Suspended")["status"] == "True", "it is suspended")

    api_server.kubectl("patch", "pj", "-n", namespace, running, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    wait_until(lambda: is_running(api_server, namespace), "it runs again")


def test_a_deleted_job_leaves_nothing_behind(api_server, namespace, running):
    api_server.kubectl("delete", "pipelinejob", "-n", namespace, running)

    kinds = "pods,services,configmaps"
    wait_until(
        lambda: (
            not [
                item
                for item in api_server.get(kinds, "-n", namespace)["items"]
                if item["metadata"]["name"] != "kube-root-ca.crt"
            ]
        ),
        "nothing is left",
    )


def test_a_pod_taken_away_is_made_up_for_by_a_new_gang(api_server, namespace, running):
    attempt = status(api_server, namespace)["attempt"]
    api_server.kubectl("delete", "pod", "-n", namespace, "gpt-r0-s1", "--grace-period=0", "--force")

    wait_until(
        lambda: status(api_server, namespace)["attempt"] == attempt + 1 and is_running(api_server, namespace),
        "the next attempt runs",
    )


def test_describe_tells_the_story(api_server, namespace, running):
    wait_until(lambda: len(reasons(api_server, namespace) - {"Scheduled"}) >= 1, "the operator's events are there")
    told = [
        event
        for event in api_server.get("events", "-n", namespace)["items"]
        if event["involvedObject"]["kind"] == "PipelineJob"
    ]

    assert told
    assert all(event["message"] and event["type"] in {"Normal", "Warning"} for event in told)
    assert told[0]["message"] in api_server.kubectl("describe", "pipelinejob", "-n", namespace, running)


def test_an_operator_that_starts_anew_changes_nothing(api_server, operator, namespace, running):
    wait_until(lambda: status(api_server, namespace).get("state") == "Training", "the last status is written")
    operator.stop()
    before, failed_before = versions(api_server, namespace), failed_passes(operator, namespace)
    operator.start()

    wait_until(
        lambda: (operator.metric("controller_runtime_reconcile_total", controller="pipelinejob") or 0) >= 2,
        "it passed over the job",
    )
    assert failed_passes(operator, namespace) == failed_before
    assert versions(api_server, namespace) == before


def failed_passes(operator: OperatorProcess, namespace: str) -> list[str]:
    """Return what the log says of jobs of the test: those of others, whose namespaces are going, may well fail."""
    lines = operator.process.log.read_text().splitlines()
    return [line for line in lines if "pass failed" in line and f'"{namespace}/' in line]


def versions(server: ApiServer, namespace: str) -> dict[str, str]:
    items = server.get("pipelinejobs,pods,services,configmaps", "-n", namespace)["items"]
    return {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in items}


def test_a_running_job_is_scaled_by_kubectl_and_the_api_server_says_which_numbers_go(
    api_server, operator, namespace, new_node
):
    new_node(gpus=STAGES)
    manifest = job(namespace, "gpt", stages=2)
    manifest["spec"]["parallelism"]["data"] = 1
    manifest["spec"]["schedule"] = {"name": "1F1B", "globalBatchSize": 4, "microBatchSize": 1}
    api_server.apply(manifest)
    wait_until(lambda: is_running(api_server, namespace, ranks=2), "the job runs")

    with pytest.raises(RuntimeError, match=r"4 sequences cannot be shared equally by 3 replicas.*\[1, 2, 4\]"):
        api_server.kubectl("scale", "-n", namespace, "pipelinejob/gpt", "--replicas=3")
    api_server.kubectl("scale", "-n", namespace, "pipelinejob/gpt", "--replicas=2")

    wait_until(lambda: is_running(api_server, namespace, ranks=4), "it runs with two replicas")
    path = f"/apis/pipelinejob.io/v1alpha1/namespaces/{namespace}/pipelinejobs/gpt/scale"
    scale = json.loads(api_server.kubectl("get", "--raw", path))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    selected = api_server.get("pods", "-n", namespace, "-l", scale["status"]["selector"])["items"]
    assert len(selected) == len(pods(api_server, namespace, "gpt")) == STAGES
    assert condition(api_server, namespace, "gpt", "Resized")["reason"] == "AsWanted"
