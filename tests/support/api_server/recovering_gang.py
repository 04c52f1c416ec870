"""A job of several stages that recovers in place, over the real API server: the test is its kubelets and trainers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelinejob.base import names
from support.api_server.answering_stages import Stage, Stages
from support.api_server.apiserver import ApiServer
from support.api_server.fakenodes import HOLD, add_nodes, node
from support.api_server.operatorprocess import is_placed, job, pods
from support.local.processes import wait_until

NAMES = tuple(f"gpt-r0-s{stage}" for stage in range(4))
THEN = "2026-01-01T00:00:00Z"


class Gang:
    """The job's pods, and what is seen and done of them."""

    def __init__(self, server: ApiServer, namespace: str, stages: list[Stage], nodes: list[str]) -> None:
        self.server, self.namespace, self.stages, self.nodes = server, namespace, stages, nodes
        self.step = 7
        self.names = list(NAMES)  # of the stages' pods, of which a spare's may be one

    def submit(self, labels: dict[str, str], *, stages: int = 3, **spec: Any) -> None:
        """Bring the job to training, with the first so many stages."""
        first, self.stages = self.stages, self.stages[:stages]
        trainer = {"name": "trainer", "resources": {"requests": {"cpu": "600m"}}}
        template = {
            "metadata": {"annotations": {HOLD: "true"}},
            "spec": {"nodeSelector": labels, "containers": [trainer]},
        }
        recovery = {"inPlace": True, "waitSeconds": 300}
        parts = {"device": "cpu", "template": template, "recovery": recovery} | spec
        self.server.apply(job(self.namespace, "gpt", stages=stages, **parts))
        wait_until(lambda: is_placed(self.server, self.namespace, "gpt", ranks=stages), "the gang has its nodes")
        for stage in self.stages:
            self.come_up(stage.number)
        self.meet(1)
        self.stages = first

    def ask(self, change: dict[str, Any]) -> None:
        """Change the job's spec. Raises RuntimeError with what the API server says against it."""
        patch = json.dumps({"spec": change})
        self.server.kubectl("patch", "pj", "-n", self.namespace, "gpt", "--type=merge", "-p", patch)

    def succeed(self, stage: int) -> None:
        """Let a stage's process end well, as the others need it no more."""
        done = {"exitCode": 0, "reason": "Completed", "startedAt": THEN, "finishedAt": THEN}
        self.write(stage, "Succeeded", {"terminated": done})

    def pod(self, stage: int) -> dict[str, Any] | None:
        return next((each for each in self.all() if each["metadata"]["name"] == self.names[stage]), None)

    def all(self) -> list[dict[str, Any]]:
        return pods(self.server, self.namespace, "gpt")

    def uids(self) -> dict[int, str]:
        uids = {each["metadata"]["name"]: each["metadata"]["uid"] for each in self.all()}
        return {stage: uids[name] for stage, name in enumerate(self.names) if name in uids}

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
        # First: a stage that others have lost is replaced at once, whatever its kubelet still has
        # to say.
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
        assert all(each == told[0] for each in told)
        assert [member.address for member in told[0].members] == [
            f"{each.address}:{5000 + each.number}" for each in self.stages
        ]
        for stage in self.stages:
            stage.train(step=self.step)
        wait_until(lambda: self.status()["state"] == "Training", "it trains")

    def spare(self, number: int) -> dict[str, Any] | None:
        """Return a spare's pod, once it is bound."""
        name = names.spare_pod_name("gpt", number=number)
        found = (each for each in self.all() if each["metadata"]["name"] == name)
        return next((each for each in found if each["spec"].get("nodeName")), None)

    def warm(self, number: int, process: Stage) -> None:
        """Let a spare come up, whose process this is, until the operator knows."""
        wait_until(lambda: self.spare(number) is not None, f"spare {number} is bound")
        pod = self.spare(number)
        assert pod is not None
        at = {"podIP": process.address, "podIPs": [{"ip": process.address}], "hostIP": process.address}
        self.write_pod(pod["metadata"]["name"], "Running", {"running": {"startedAt": THEN}}, **at)
        process.keep_warm(pod, number)
        wait_until(lambda: self.ready_spares() == [number], f"spare {number} is ready")

    def ready_spares(self) -> list[int]:
        """Return the numbers of the spares that the status calls ready."""
        return [each["number"] for each in self.status()["recovery"].get("spares", []) if each.get("ready")]

    def replaced_by(self, stage: int, number: int, process: Stage) -> None:
        """Wait until a spare has taken a stage's place, whose process this is."""
        wait_until(lambda: process.number == stage, f"spare {number} is told to be stage {stage}")
        self.names[stage], self.stages[stage] = names.spare_pod_name("gpt", number=number), process

    def write(self, stage: int, phase: str, state: dict[str, Any], **status: Any) -> None:
        self.write_pod(self.names[stage], phase, state, **status)

    def write_pod(self, name: str, phase: str, state: dict[str, Any], **status: Any) -> None:
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
            "patch", "pod", "-n", self.namespace, name, "--subresource=status", "--type=merge", "-p", patch
        )


@contextmanager
def gang_in_training(
    server: ApiServer, namespace: str, *, num_nodes: int, stages: int = 3, processes: int = 3, **spec: Any
) -> Iterator[Gang]:
    """Bring a job to training on nodes of its own, each of which has room for one stage, for so many processes."""
    labels = {"test": namespace[-6:]}
    nodes = [f"training-{namespace[-6:]}-{n}" for n in range(num_nodes)]
    add_nodes(server, [node(name, labels=labels, cpu="1") for name in nodes])
    with Stages(processes) as answering:
        gang = Gang(server, namespace, answering, nodes)
        gang.submit(labels, stages=stages, **spec)
        yield gang
    server.kubectl("delete", "node", "--ignore-not-found", *nodes)
