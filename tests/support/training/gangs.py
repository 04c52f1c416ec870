"""Gangs of real trainer processes over gloo: a plan by hand, a process for each rank, and what they left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

from pipelinejob.base import names
from pipelinejob.contract.plan import CostSource, Plan, Prediction, StagePlan
from pipelinejob.contract.progress import Progress, StepRecord, Termination
from pipelinejob.planning.playing import setting_of
from pipelinejob.scheduler.catalogue import build
from pipelinejob.schedules.recomputation import spread
from pipelinejob.spec.job import (
    Checkpoint,
    Data,
    Device,
    Evaluation,
    GptModel,
    Model,
    Parallelism,
    ScheduleSpec,
    Training,
)
from support.local.answers import fetch
from support.local.processes import HANG_S, free_ports, wait_until
from support.training.forking.forks import forks_of_this_process

TOKEN = "of-nobody-else"
TINY = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2))


def plan(
    *layers: int,
    ranks: int | None = None,
    replicas: int = 1,
    tensor: int = 1,
    model: Model = TINY,
    data: Data | None = None,
    schedule: ScheduleSpec | None = None,
    training: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    evaluation: Evaluation | None = None,
) -> Plan:
    """Return a plan whose schedule's stages have these numbers of layers; predictions are placeholders.

    `ranks` is how many ranks the stages stand on, where the schedule gives each several.
    """
    spec = schedule or ScheduleSpec(micro_batches=2, micro_batch_size=2)
    num_ranks = ranks or len(layers)
    cuts = tuple(pairwise(accumulate(layers, initial=0)))
    held = build(spec.name, setting_of(spec, num_ranks)).held_by
    return Plan(
        namespace="default",
        name="job",
        model=model,
        data=data or Data(corpus="python-stdlib", sequence_length=16),
        parallelism=Parallelism(pipeline=num_ranks, data=replicas, tensor=tensor),
        schedule=spec,
        training=Training(**{"steps": 6, "learning_rate": 0.01, "warmup_steps": 2, "seed": 7, **(training or {})}),
        evaluation=evaluation,
        checkpoint=Checkpoint(**{"interval_steps": 3, **(checkpoint or {})}),
        device=Device.CPU,
        cuts=cuts,
        stages=tuple(
            _stage(rank, tuple(dict.fromkeys(cuts[each.stage] for each in held(rank))), spec)
            for rank in range(num_ranks)
        ),
        prediction=Prediction(step_s=0.1, tokens_per_s=100.0, bubble_ratio=0.25, source=CostSource.ANALYTIC),
    )


def _stage(stage: int, chunks: tuple[tuple[int, int], ...], spec: ScheduleSpec) -> StagePlan:
    return StagePlan(
        stage=stage,
        chunks=chunks,
        forward_s=0.001,
        backward_input_s=0.001,
        backward_weight_s=0.001,
        output_bytes=1024,
        parameter_bytes=4096,
        memory_bytes=2**20,
        bubble_ratio=0.25,
        recompute=spec.recomputes(stage),
        recompute_layers=spread(chunks, spec.recomputed_layers(stage)),
    )


class Running(Protocol):
    """A rank's process, as `subprocess.Popen` shows it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, number: int) -> None: ...


class Machines(Protocol):
    """Where ranks run."""

    def address(self, pod: str) -> str:
        """Return where the others reach a rank."""

    def rendezvous(self) -> str:
        """Return an address of this process that the ranks reach."""

    def launch(self, pod: str, environment: Mapping[str, str], log: Path) -> Running:
        """Start a rank's process."""


class Here:
    """This machine, with each rank forked from a process that has imported torch."""

    def address(self, pod: str) -> str:
        return "127.0.0.1"

    def rendezvous(self) -> str:
        return "127.0.0.1"

    def launch(self, pod: str, environment: Mapping[str, str], log: Path) -> Running:
        return forks_of_this_process().fork(environment, log)


class FromScratch(Here):
    """This machine, with a new interpreter for each rank, as in a pod: seconds of processor time each."""

    def launch(self, pod: str, environment: Mapping[str, str], log: Path) -> Running:
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelinejob_trainer", "run"],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@dataclass(slots=True)
class Gang:
    """All ranks of a plan, in a folder; `start` may be called again, for the next attempt."""

    folder: Path
    plan: Plan
    attempt: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    machines: Machines = field(default_factory=Here)
    processes: dict[str, Running] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    rendezvous: int = 0

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def start(self) -> Gang:
        self.attempt += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "plan.json").write_text(self.plan.to_json())
        ranks = [(r, s) for r in range(self.plan.parallelism.data) for s in range(self.plan.parallelism.pipeline)]
        self.rendezvous, *ports = free_ports(len(ranks) + 1)
        for (replica, stage), port in zip(ranks, ports, strict=True):
            self._start(replica, stage, port, self.rendezvous)
        return self

    def join(self, replica: int) -> None:
        """Start the ranks of a further replica, in the same attempt."""
        for stage, port in enumerate(free_ports(self.plan.parallelism.pipeline)):
            self._start(replica, stage, port, self.rendezvous)

    def join_stage(self, stage: int) -> None:
        """Start a further stage of each replica, in the same attempt."""
        for replica, port in enumerate(free_ports(self.plan.parallelism.data)):
            self._start(replica, stage, port, self.rendezvous)

    def restart(self, pod: str) -> None:
        """Start a rank that has ended anew, in the same attempt."""
        replica, stage = (int(part[1:]) for part in pod.rsplit("-", 2)[1:])
        self._start(replica, stage, free_ports(1)[0], self.rendezvous)

    def _start(self, replica: int, stage: int, port: int, rendezvous: int) -> None:
        pod = names.pod_name("job", replica=replica, stage=stage)
        (self.folder / f"{pod}.termination").unlink(missing_ok=True)
        self.ports[pod] = port
        variables = {
            names.ENV_PLAN: self.folder / "plan.json",
            names.ENV_NAMESPACE: "default",
            names.ENV_JOB: "job",
            names.ENV_STAGE: stage,
            names.ENV_REPLICA: replica,
            names.ENV_ATTEMPT: self.attempt,
            names.ENV_RENDEZVOUS: f"{self.machines.rendezvous()}:{rendezvous}",
            names.ENV_METRICS_PORT: port,
            names.ENV_CHECKPOINTS: self.checkpoints,
            names.ENV_OUTPUT: self.folder,
            names.ENV_TERMINATION_LOG: self.folder / f"{pod}.termination",
            names.ENV_GRACE_S: 30,
            names.ENV_TOKEN: TOKEN,
            "OMP_NUM_THREADS": 1,
            **self.environment,
        }
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        self.processes[pod] = self.machines.launch(pod, environment, self.folder / f"{pod}.log")

    def wait(self, *, timeout_s: float = HANG_S) -> dict[str, int]:
        """Wait for all ends; give exit codes as a container runtime would."""
        self.until(lambda: all(each.poll() is not None for each in self.processes.values()), "all ranks end", timeout_s)
        codes = {pod: process.wait() for pod, process in self.processes.items()}
        return {pod: code if code >= 0 else 128 - code for pod, code in codes.items()}

    def finish(self) -> Gang:
        codes = self.wait()
        assert set(codes.values()) == {0}, f"{codes}\n{self.logs()}"
        return self

    def wait_for_step(self, step: int) -> None:
        self.until(lambda: any(record.step >= step for record in self.steps()), f"step {step}")

    def train_on(self) -> None:
        """Wait until it has trained two further steps."""
        self.wait_for_step(2 + max((record.step for record in self.steps()), default=0))

    def until(self, claim: Callable[[], object], what: str, timeout_s: float = HANG_S) -> None:
        try:
            wait_until(claim, what, timeout_s=timeout_s, poll_s=0.02)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from error

    def signal(self, pod: str, number: signal.Signals) -> None:
        self.processes[pod].send_signal(number)

    def kill(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def steps(self) -> list[StepRecord]:
        file = self.folder / names.STEPS_FILE
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [StepRecord.model_validate_json(line) for line in lines if line.endswith("\n")]

    def losses(self) -> list[float]:
        last = {record.step: record.loss for record in self.steps()}
        return [last[step] for step in sorted(last)]

    def termination(self, pod: str) -> Termination:
        return Termination.model_validate_json((self.folder / f"{pod}.termination").read_bytes())

    def get(self, pod: str, path: str) -> str:
        return fetch(f"{self.url(pod)}{path}", timeout_s=5)

    def url(self, pod: str) -> str:
        return f"http://{self.machines.address(pod)}:{self.ports[pod]}"

    def progress(self, pod: str) -> Progress:
        return Progress.model_validate_json(self.get(pod, "/progress"))

    def logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self.folder.glob("*.log"))
