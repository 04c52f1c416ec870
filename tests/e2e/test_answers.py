"""What was trained on real nodes answers there: in pods, through its Service, and again once a lost stage is back."""

from __future__ import annotations

import json
from typing import Any

import pytest

import nodes
from support.local.processes import wait_until
from support.real_nodes.team_jobs import NAMESPACE, apply_job, containers, serving, small, wait_for

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]
CHAIN = "answering-0"


def test_what_was_trained_answers_through_its_service_and_a_lost_pod_alone_is_replaced(
    cluster: nodes.Cluster, team: str
) -> None:
    apply_job(cluster, small(name="taught", steps=6, interval=3))
    wait_for(cluster, "taught", lambda status: status["state"] == "Succeeded", "the end")

    apply_job(cluster, serving(name="answering", of="taught"))
    wait_for(cluster, "answering", lambda status: status["state"] == "Serving", "a chain that answers")
    said = ask(cluster, "def ")
    before = containers(cluster, CHAIN)

    cluster.server.kubectl("delete", "pod", "-n", NAMESPACE, f"{CHAIN}-r0-s1", "--wait=false")
    wait_until(
        lambda: containers(cluster, CHAIN)[f"{CHAIN}-r0-s1"][0] != before[f"{CHAIN}-r0-s1"][0], "another pod", poll_s=1
    )
    wait_until(lambda: ask(cluster, "def ") == said, "the same answer", timeout_s=300, poll_s=1)

    after = containers(cluster, CHAIN)
    assert {pod for pod in before if before[pod] != after[pod]} == {f"{CHAIN}-r0-s1"}
    cluster.server.kubectl("delete", "pj", "-n", NAMESPACE, "answering", "--timeout=240s")


def ask(cluster: nodes.Cluster, prompt: str) -> Any:
    """Return the greedy answer, asked for through the Service."""
    body = {"model": "answering", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    path = f"/api/v1/namespaces/{NAMESPACE}/services/answering-serve:80/proxy/v1/completions"
    answer = json.loads(cluster.server.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body)))
    return answer["choices"][0]["text"]
