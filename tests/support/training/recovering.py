"""A gang that recovers in place, and a stand-in for the operator: it numbers meetings and starts lost ranks anew."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file

from pipelinejob.base import names
from pipelinejob.contract.incarnation import Incarnation, Member
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Progress
from pipelinejob.spec.job import Recovery
from support.local.answers import fetch
from support.training.gangs import TOKEN, Gang, Running, plan


def recovering_plan(*layers: int, recovery: dict[str, Any] | None = None, **changes: Any) -> Plan:
    settings = Recovery(**{"in_place": True, "silence_seconds": 4, **(recovery or {})})
    return plan(*layers, **changes).model_copy(update={"recovery": settings})


@dataclass(slots=True)
class Operator:
    """Does what the operator does for a gang, and nothing else."""

    gang: Gang
    number: int = 0
    replaced: list[str] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)  # of those that ended before it replaced them
    coming: set[str] = field(default_factory=set)  # started anew since the last incarnation
    leaves_stopped: bool = False  # whether it starts another beside a silent process, as if its node were cut off
    stale: list[Running] = field(default_factory=list)
    met: set[tuple[int, int]] = field(default_factory=set)  # the members of the last incarnation
    plan: Plan | None = None  # by which the gang trains now, if not by the one that it began with
    goal: Plan | None = None  # to which it goes over once all that it needs are there
    is_over: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> Operator:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        self.is_over.set()
        assert self.thread is not None
        self.thread.join()

    def forget(self) -> None:
        """Know nothing any more, as one that is killed and started again: what it is to know, the ranks say."""
        self.number = 0
        self.coming.clear()
        self.met.clear()
        self.is_over.clear()

    def _run(self) -> None:
        while not self.is_over.wait(0.05):
            self.look()

    def look(self) -> None:
        processes = {pod: each for pod, each in list(self.gang.processes.items()) if each.poll() != 0}
        reports = {pod: self._progress(pod) for pod in processes}
        known = [report for report in reports.values() if report is not None]
        silent = {
            names.pod_name("job", replica=lost.replica, stage=lost.stage) for each in known for lost in each.lost
        } & {pod for pod, report in reports.items() if report is None and pod not in self.coming}
        ended = {pod for pod, process in processes.items() if process.poll() not in {None, 0}}
        for pod in sorted(silent | ended):
            self.replace(pod)
        waiting = [report for report in known if report.awaits_incarnation]
        if waiting and len(waiting) == len(reports) and not silent | ended:
            self._name([each for each in waiting if _is_of(each, self._wanted)])
        elif self.goal is not None and len(known) == len(reports):
            self._resize(self.goal, known)

    def resize(self, plan: Plan) -> None:
        """Have the gang go over to another plan; the processes that it needs besides wait to be called."""
        self.begin(plan)
        self.gang.until(lambda: self.goal is None, f"the plan of {plan.parallelism}")

    def begin(self, plan: Plan) -> None:
        """Have the gang go over to another plan some time."""
        self.goal = plan

    @property
    def _wanted(self) -> Plan:
        return self.plan or self.gang.plan

    def _resize(self, goal: Plan, known: list[Progress]) -> None:
        is_told = self.plan == goal
        members = [each for each in known if _is_of(each, goal)]
        if is_told and {each.incarnation for each in members} == {self.number}:
            self.goal = None
        elif not is_told and all(each.incarnation == self.number or each.awaits_incarnation for each in known):
            self.plan = goal
            self._name(members, at_border=True)

    def replace(self, pod: str) -> None:
        process = self.gang.processes[pod]
        if (code := process.poll()) is not None:
            self.codes.add(code)
        if process.poll() is None and self.leaves_stopped:
            self.stale.append(process)
        else:
            process.kill()
            process.wait()
        self.replaced.append(pod)
        self.coming.add(pod)
        self.gang.restart(pod)

    def _name(self, waiting: list[Progress], *, at_border: bool = False) -> None:
        self.number = max(self.number, *(each.incarnation for each in waiting)) + 1
        self.coming.clear()
        members = tuple(
            Member(replica=each.replica, stage=each.stage, address=f"{self._address(each)}:{each.control_port}")
            for each in sorted(waiting, key=lambda each: (each.replica, each.stage))
        )
        body = Incarnation(
            number=self.number,
            attempt=self.gang.attempt,
            members=members,
            plan=self.plan.to_json() if self.plan else "",
            at_border=at_border,
        ).model_dump_json()
        told = {(each.replica, each.stage) for each in members} | self.met
        for replica, stage in sorted(told):
            self._post(names.pod_name("job", replica=replica, stage=stage), body)
        self.met = {(each.replica, each.stage) for each in members}

    def _address(self, rank: Progress) -> str:
        return self.gang.machines.address(names.pod_name("job", replica=rank.replica, stage=rank.stage))

    def _post(self, pod: str, body: str) -> None:
        url = f"{self.gang.url(pod)}/incarnation"
        request = urllib.request.Request(url, data=body.encode(), method="POST")
        request.add_header("Authorization", f"Bearer {TOKEN}")
        try:
            fetch(request, timeout_s=5)
        except (OSError, RuntimeError, http.client.HTTPException):  # it has ended meanwhile, or was told already
            return

    def _progress(self, pod: str) -> Progress | None:
        url = f"{self.gang.url(pod)}/progress"
        try:
            return Progress.model_validate_json(fetch(url, timeout_s=3))
        except (OSError, RuntimeError, ValueError, http.client.HTTPException):  # it may die in the middle of its answer
            return None


def _is_of(report: Progress, plan: Plan) -> bool:
    return report.replica < plan.parallelism.data and report.stage < plan.parallelism.pipeline


def assert_same_end(gang: Gang, other: Gang, *, steps: int) -> None:
    """See that two runs had the same losses, and end with the same weights and optimiser, bit for bit."""
    assert gang.losses() == other.losses()
    assert len(gang.losses()) == steps
    mine, others = state(gang, steps), state(other, steps)
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def state(gang: Gang, steps: int) -> dict[str, torch.Tensor]:
    shards = sorted((gang.checkpoints / f"step-{steps:08d}").glob("*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
