"""Recovery in place over the real API server and scheduler: who is replaced, where, and who is told of it.

The tests write what a kubelet would, and answer as the trainers would; kwok only takes deleted pods away.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from support.api_server.answering_stages import Stage, Stages
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import HOLD, add_nodes, node
from support.api_server.operatorprocess import OperatorProcess, is_placed, job, pods
from support.local.processes import Process, wait_until

pytestmark = pytest.mark.xdist_group("life")  # one operator at a time

NAMES = tuple(f"gpt-r0-s{stage}" for stage in range(3))
THEN = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def operator(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory):
    with OperatorProcess(api_server.kubeconfig, tmp_path_factory.mktemp("operator")) as operator:
        yield operator
        assert operator.alive


@pytest.fixture
def gang(api_server: ApiServer, kwok: Process, operator: OperatorProcess, namespace: str):
    """A job of three stages that trains on three of four nodes, each of which has room for one."""
    labels = {"test": namespace[-6:]}
    nodes = [f"recovering-{namespace[-6:]}-{n}" for n in range(4)]
    add_nodes(api_server, [node(name, labels=labels, cpu="1") for name in nodes])
    with Stages(3) as stages:
        gang = Gang(api_server, namespace, stages, nodes)
        gang.submit(labels)
        yield gang
    api_server.kubectl("delete", "node", "--ignore-not-found", *nodes)


class Gang:
    """The job's pods, and what is seen and done of them."""

    def __init__(self, server: ApiServer, namespace: str, stages: Stages, nodes: list[str]) -> None:
        self.server, self.namespace, self.stages, self.nodes = server, namespace, stages, nodes
        self.step = 7

    def submit(self, labels: dict[str, str]) -> None:
        """Bring the job to training."""
        trainer = {"name": "trainer", "resources": {"requests": {"cpu": "600m"}}}
        template = {
            "metadata": {"annotations": {HOLD: "true"}},
            "spec": {"nodeSelector": labels, "containers": [trainer]},
        }
        recovery = {"inPlace": True, "waitSeconds": 300}
        spec = {"device": "cpu", "template": template, "recovery": recovery}
        self.server.apply(job(self.namespace, "gpt", stages=3, **spec))
        wait_until(lambda: is_placed(self.server, self.namespace, "gpt", ranks=3), "the gang has its nodes")
        for stage in self.stages:
            self.come_up(stage.number)
        self.meet(1)

    def pod(self, stage: int) -> dict[str, Any] | None:
        return next((each for each in self.all() if each["metadata"]["name"] == NAMES[stage]), None)

    def all(self) -> list[dict[str, Any]]:
        return pods(self.server, self.namespace, "gpt")

    def uids(self) -> dict[int, str]:
        return {NAMES.index(each["metadata"]["name"]): each["metadata"]["uid"] for each in self.all()}

    def node_of(self, stage: int) -> str:
        pod = self.pod(stage)
        assert pod is not None
        return str(pod["spec"]["nodeName"])

    def status(self) -> dict[str, Any]:
        return self.server.get("pipelinejob", "-n", self.namespace, "gpt")["status"]

    def events(self, reason: str) -> list[str]:
        items = self.server.get("events", "-n", self.namespace)["items"]
        return [each["message"] for each in items if each["reason"] == reason]

    def come_up(self, stage: int) -> None:
        """Let a stage's process start, and wait to be told who meets."""
        address = self.stages[stage].address
        state = {"running": {"startedAt": THEN}}
        self.write(stage, "Running", state, podIP=address, podIPs=[{"ip": address}], hostIP=address)
        pod = self.pod(stage)
        assert pod is not None
        self.stages[stage].wait(pod, step=self.step)

    def fail(self, stage: int, code: int, *, step: int | None = None, **status: Any) -> None:
        """Let a stage's process end; the others notice, and wait."""
        self.step = self.step + 1 if step is None else step
        others = self.others(stage)
        for other, _ in others:
            other.train(step=self.step)
        reason = {"exitCode": code, "reason": "Error", "startedAt": THEN, "finishedAt": THEN}
        # First: a stage that others have lost is replaced at once, whatever its kubelet still has to say.
        self.write(stage, "Failed", {"terminated": reason}, **status)
        self.lose(stage, others)

    def lose(self, stage: int, others: list[tuple[Stage, dict[str, Any]]]) -> None:
        """Let a stage answer no more, and the others wait for another in its place."""
        self.stages[stage].die()
        for other, pod in others:
            other.wait(pod, step=self.step, lost=(stage,))

    def others(self, stage: int) -> list[tuple[Stage, dict[str, Any]]]:
        """Return the other stages with their pods."""
        found = [(other, self.pod(other.number)) for other in self.stages if other.number != stage]
        return [(other, pod) for other, pod in found if pod is not None]

    def replaced(self, stage: int, old: str) -> str:
        """Wait for a stage's next pod to be bound; give its uid."""

        def is_there() -> bool:
            pod = self.pod(stage)
            return pod is not None and pod["metadata"]["uid"] != old and bool(pod["spec"].get("nodeName"))

        wait_until(is_there, f"stage {stage} is replaced")
        return self.uids()[stage]

    def meet(self, number: int) -> None:
        """Wait until each stage was told of the same meeting, the first such or a later one, and all train."""
        asked = time.monotonic()

        def have_met() -> bool:
            nonlocal asked
            heard = [each.heard[-1].number if each.heard else 0 for each in self.stages]
            if time.monotonic() - asked > 10 and max(heard) >= number:  # one was not reached: the others wait anew
                asked = time.monotonic()
                for each in self.stages:
                    pod = self.pod(each.number)
                    if pod is not None and min(heard) < max(heard):
                        each.wait(pod, step=self.step)
            return min(heard) == max(heard) >= number

        wait_until(have_met, f"meeting {number}")
        wait_until(lambda: self.status()["recovery"].get("replacing", []) == [], "nobody is replaced any more")
        told = [each.heard[-1] for each in self.stages]
        assert told[0] == told[1] == told[2]
        assert [member.address for member in told[0].members] == [
            f"{each.address}:{5000 + each.number}" for each in self.stages
        ]
        for stage in self.stages:
            stage.train(step=self.step)
        wait_until(lambda: self.status()["state"] == "Training", "it trains")

    def write(self, stage: int, phase: str, state: dict[str, Any], **status: Any) -> None:
        is_ready = "running" in state
        container = {"name": "trainer", "image": "x", "imageID": "", "ready": is_ready, "restartCount": 0}
        ready = {"type": "Ready", "status": str(is_ready)}
        body = {
            "phase": phase,
            "conditions": [ready, *status.pop("conditions", ())],
            "containerStatuses": [{**container, "state": state}],
            **status,
        }
        patch = json.dumps({"status": body})
        self.server.kubectl(
            "patch", "pod", "-n", self.namespace, NAMES[stage], "--subresource=status", "--type=merge", "-p", patch
        )


def changed(before: dict[int, str], after: dict[int, str]) -> set[int]:
    return {stage for stage, uid in before.items() if after.get(stage) != uid}


def test_a_killed_an_evicted_and_a_homeless_stage_are_replaced_alone_by_operators_that_die_in_between(
    gang: Gang, operator: OperatorProcess
) -> None:
    before, there = gang.uids(), gang.node_of(1)
    gang.fail(1, 137)
    gang.replaced(1, before[1])
    wait_until(lambda: gang.events("Replacing"), "it says so")
    assert gang.events("Replacing") == ["Only gpt-r0-s1 is replaced; 2 stages keep their processes"]
    gang.come_up(1)
    gang.meet(2)
    assert changed(before, gang.uids()) == {1}
    assert gang.node_of(1) == there

    before = gang.uids()
    operator.process.stop(9)
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    gang.fail(0, 137, reason="Evicted", message="The node was low on resource: memory.", conditions=[evicted])
    operator.start()
    gang.replaced(0, before[0])
    operator.process.stop(9)
    gang.come_up(0)
    operator.start()
    gang.meet(3)
    assert changed(before, gang.uids()) == {0}

    before, lost = gang.uids(), gang.node_of(2)
    others = gang.others(2)
    gang.server.kubectl("delete", "node", lost)
    gang.lose(2, others)
    gang.replaced(2, before[2])
    assert {gang.node_of(2)} == set(gang.nodes) - {lost, gang.node_of(0), gang.node_of(1)}
    gang.come_up(2)
    gang.meet(4)
    assert changed(before, gang.uids()) == {2}

    status = gang.status()
    assert (status["attempt"], status["restarts"], status["recovery"]["replacements"]) == (1, 0, 3)
    assert [each["node"] for each in status["stages"]] == [gang.node_of(stage) for stage in range(3)]
    wait_until(lambda: len(gang.events("Replacing")) == 3, "three events")
    assert any(f"instead of {lost}" in each for each in gang.events("Replacing"))
