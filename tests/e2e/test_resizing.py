"""Replicas and stages come and go on real nodes while a job trains: pods that stay keep container and process."""

from __future__ import annotations

from typing import Any

import pytest

import nodes
from support.local.processes import wait_until
from support.real_nodes.team_jobs import NAMESPACE, apply_job, containers, job, patch, pods, small, wait_for

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]
NAME = "resized"
STEPS = 100_000  # it is deleted before


def submit(cluster: nodes.Cluster) -> None:
    manifest = small(name=NAME, steps=STEPS, interval=1000)
    spec = manifest["spec"]
    spec["recovery"] = {"inPlace": True}
    spec["parallelism"] = {"pipeline": 2, "data": 1}
    spec["schedule"] = {"name": "1F1B", "globalBatchSize": 4, "microBatchSize": 1}
    apply_job(cluster, manifest)
    wait_for(cluster, NAME, lambda status: status.get("step", 0) >= 2, "some steps")


def go_over(cluster: nodes.Cluster, change: dict[str, Any], *, ranks: int, resizes: int) -> None:
    """Change a job that trains, and wait until it trains so; those that were there and stay were not touched."""
    before = containers(cluster, NAME)
    patch(cluster, NAME, {"spec": change})
    wait_for(
        cluster,
        NAME,
        lambda status: status["recovery"].get("resizes") == resizes and "resizing" not in status["recovery"],
        f"{change} from memory",
    )
    wait_for(cluster, NAME, lambda status: status["stagesReady"] == f"{ranks}/{ranks}", "all are ready")
    wait_until(lambda: len(pods(cluster, NAME)) == ranks, "those that left are taken away")
    after = containers(cluster, NAME)
    assert {pod: after[pod] for pod in before if pod in after} == {pod: before[pod] for pod in before if pod in after}
    status = job(cluster, NAME)["status"]
    assert float(status["recovery"]["stallSeconds"]) < 5, status["recovery"]
    reached = status["step"]
    wait_for(cluster, NAME, lambda status: status["step"] > reached, "it trains on")


def test_replicas_and_stages_come_and_go_and_no_container_restarts(cluster: nodes.Cluster, team: str) -> None:
    submit(cluster)
    go_over(cluster, {"parallelism": {"data": 2}}, ranks=4, resizes=1)
    go_over(cluster, {"parallelism": {"data": 1}}, ranks=2, resizes=2)
    go_over(cluster, {"parallelism": {"pipeline": 3}}, ranks=3, resizes=3)
    go_over(cluster, {"schedule": {"name": "ZB-H1"}}, ranks=3, resizes=4)
    go_over(cluster, {"parallelism": {"pipeline": 2}}, ranks=2, resizes=5)
    status = job(cluster, NAME)["status"]
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert {count for *_, count in containers(cluster, NAME).values()} == {0}
    logs = cluster.server.kubectl("logs", "-n", NAMESPACE, f"{NAME}-r0-s1")
    assert "with the layers divided anew" in logs
    cluster.server.kubectl("delete", "pj", NAME, "-n", team)
