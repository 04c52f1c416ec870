"""A warm spare takes a lost stage's place on real nodes: its container is the one that has waited."""

from __future__ import annotations

import pytest

import nodes
from support.local.processes import wait_until
from support.real_nodes.team_jobs import apply_job, containers, job, kill, pods, small, wait_for

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]
NAME = "spared"


def is_ready(cluster: nodes.Cluster, pod: str) -> bool:
    return any(
        each["metadata"]["name"] == pod
        and any(told["type"] == "Ready" and told["status"] == "True" for told in each["status"].get("conditions", ()))
        for each in pods(cluster, NAME)
    )


def test_a_spares_pod_takes_a_killed_stages_place_and_another_is_made(cluster: nodes.Cluster, team: str) -> None:
    manifest = small(name=NAME, steps=100_000, interval=1000)
    manifest["spec"]["recovery"] = {"inPlace": True, "spares": 1}
    apply_job(cluster, manifest)
    wait_for(cluster, NAME, lambda status: status.get("step", 0) >= 3, "some steps")
    wait_until(lambda: is_ready(cluster, f"{NAME}-spare-0"), "the spare is ready")
    before = containers(cluster, NAME)

    kill(cluster, f"{NAME}-r0-s1")
    wait_for(cluster, NAME, lambda status: status["recovery"]["incarnation"] == 2, "the gang meets again")
    status = job(cluster, NAME)["status"]
    reached = status["step"]
    wait_for(cluster, NAME, lambda status: status["step"] > reached, "it trains on")

    after = containers(cluster, NAME)
    assert [stage["pod"] for stage in status["stages"]] == [f"{NAME}-r0-s0", f"{NAME}-spare-0"]
    assert {pod: after[pod] for pod in (f"{NAME}-r0-s0", f"{NAME}-spare-0")} == {
        pod: before[pod] for pod in (f"{NAME}-r0-s0", f"{NAME}-spare-0")
    }
    assert (status["attempt"], status["restarts"], status["recovery"]["sparesUsed"]) == (1, 0, 1)
    wait_until(lambda: is_ready(cluster, f"{NAME}-spare-1"), "another spare is ready")
    cluster.server.kubectl("delete", "pj", NAME, "-n", team)
