"""What was trained on real nodes answers there: through its Service, and a file of requests on a volume, in pods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nodes
from support.local.processes import wait_until
from support.real_nodes.team_jobs import NAMESPACE, apply_job, containers, job, kill, serving, small, wait_for

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]
CHAIN = "answering-0"
REQUESTS = 300


@pytest.fixture(scope="module")
def taught(cluster: nodes.Cluster, team: str) -> str:
    """A job that has trained, whose checkpoints lie on the team's volume."""
    apply_job(cluster, small(name="taught", steps=6, interval=3))
    wait_for(cluster, "taught", lambda status: status["state"] == "Succeeded", "the end")
    return "taught"


def test_what_was_trained_answers_through_its_service_and_a_lost_pod_alone_is_replaced(
    cluster: nodes.Cluster, taught: str
) -> None:
    apply_job(cluster, serving(name="answering", of=taught))
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


def test_a_file_on_a_volume_is_answered_once_each_though_every_stage_is_killed(
    cluster: nodes.Cluster, taught: str
) -> None:
    folder = cluster.folder / "shared" / "checkpoints" / "prompts"
    folder.mkdir()
    folder.chmod(0o777)
    bodies = [{"model": "file", "prompt": f"def f{number}(", "max_tokens": 24} for number in range(REQUESTS)]
    lines = [json.dumps({"custom_id": f"r{number}", "body": body}) for number, body in enumerate(bodies)]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    apply_job(cluster, batch(of=taught))
    answers = folder / "out.jsonl"

    for stage in (0, 1):
        reached = count(answers)
        wait_until(lambda reached=reached: count(answers) > reached + 10, "answers", timeout_s=600, poll_s=0.2)
        kill(cluster, f"file-r0-s{stage}")
    assert count(answers) < REQUESTS
    wait_for(cluster, "file", lambda status: status["state"] == "Succeeded", "the end")

    found = [json.loads(each) for each in answers.read_text().splitlines()]
    assert sorted(each["custom_id"] for each in found) == sorted(f"r{number}" for number in range(REQUESTS))
    assert {each["response"]["status_code"] for each in found} == {200}
    assert job(cluster, "file")["status"].get("restarts", 0) == 0  # processes began again in their pods
    cluster.server.kubectl("delete", "pj", "-n", NAMESPACE, "file", "--timeout=240s")


def batch(*, of: str) -> dict[str, Any]:
    """A job that answers the file on the team's volume with what was trained."""
    manifest = serving(name="file", of=of)
    spec = manifest["spec"]
    files = {"input": "/work/prompts/in.jsonl", "output": "/work/prompts/out.jsonl"}
    spec |= {"mode": "Batch", "serving": {**spec["serving"], "groupSize": 1, "batch": files}}
    pod = spec["template"]["spec"]
    pod["volumes"] = [{"name": "work", "persistentVolumeClaim": {"claimName": "checkpoints"}}]
    pod["containers"][0]["volumeMounts"] = [{"name": "work", "mountPath": "/work"}]
    return manifest


def count(answers: Path) -> int:
    return answers.read_bytes().count(b"\n") if answers.exists() else 0
