"""The chart is uninstalled: what runs goes on. The last file by its name, for after it there is no operator."""

from __future__ import annotations

import pytest

import nodes
from support.local.processes import wait_until
from support.real_nodes.helm import helm
from support.real_nodes.team_jobs import NAMESPACE, apply_job, example, job, pods, wait_for

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]


def test_uninstalling_keeps_the_jobs_and_blocks_no_deletion(cluster: nodes.Cluster, operator: str, team: str) -> None:
    apply_job(cluster, example(name="survivor", steps=1000, interval=1000))
    wait_for(cluster, "survivor", lambda status: status["state"] == "Training", "training")

    helm(cluster, "uninstall", "pj", f"--namespace={operator}", "--wait", "--timeout=240s")

    assert job(cluster, "survivor")["status"]["state"] == "Training"
    cluster.server.kubectl("delete", "pj", "-n", NAMESPACE, "--all", "--timeout=240s")
    wait_until(lambda: pods(cluster, "survivor") == [], "its stages go with it", timeout_s=240, poll_s=1)
