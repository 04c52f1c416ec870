"""The `pipelinejob` command as a subprocess, watched from outside."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipelinejob.base import names
from support.local.local_pods import alive
from support.local.processes import HANG_S

FAKE = Path(__file__).with_name("fake_trainer.py")


class Run:
    """One `pipelinejob run`, or another command that runs a job."""

    def __init__(
        self,
        file: Path,
        output: Path,
        *options: str,
        command: str = "run",
        program: Path | None = None,
        **environment: str,
    ) -> None:
        """Begin; `program` stands for `pipelinejob` where it is another than that."""
        self.output = output
        self.log = output.with_name(output.name + ".log")
        with self.log.open("wb") as log:
            own = [program] if program else ["-c", "from pipelinejob_operator.cli import main; main()"]
            called = [sys.executable, *map(str, own), command, str(file)]
            self.process = subprocess.Popen(
                [*called, "--output", str(output), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "120", **environment},
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float = HANG_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the run did not end in {timeout_s} s; it said:\n{self.said}") from None

    def until(self, condition: Callable[[], bool], *, timeout_s: float = HANG_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the run ended too early; it said:\n{self.said}"
            assert time.monotonic() < deadline, f"the condition did not come true; it said:\n{self.said}"
            time.sleep(0.02)

    def steps(self) -> int:
        """Count the steps trained so far, repeated ones too."""
        file = self.output / "steps.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def pids(self) -> list[int]:
        """Find the processes that this run started."""
        return children(self.process.pid)

    def stages(self) -> dict[str, int]:
        """Return the process of each stage."""
        found = {}
        for pid in self.pids():
            try:
                variables = dict(each.partition("=")[::2] for each in _environment(pid))
            except OSError:  # it has just ended
                continue
            if names.ENV_STAGE in variables:
                found[variables[names.ENV_STAGE]] = pid
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")


def children(parent: int) -> list[int]:
    """Find the processes below another."""
    below = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        if fields[1] == str(parent):
            pid = int(stat.parent.name)
            below += [pid, *children(pid)]
    return below


def wait_until_gone(pids: list[int], *, timeout_s: float = HANG_S) -> None:
    """Wait until none of the processes is left."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"processes {left} are left behind"
        time.sleep(0.02)


def first_steps(output: Path, stage: int) -> list[int]:
    """Return the steps from which the fake trainer's attempts went on."""
    logs = sorted((output / "logs").glob(f"*-s{stage}.*.log"))
    return [int(step) for log in logs for step in re.findall(r"from step (\d+)", log.read_text())]


def has_trained(output: Path, stage: int) -> bool:
    """Say whether the fake trainer's stage has trained a step; its stages do not wait for each other."""
    return any("at step" in log.read_text() for log in (output / "logs").glob(f"*-s{stage}.*.log"))


def tiny_manifest(path: Path, *, fake: bool = True, **spec: Any) -> Path:
    """Write a job of two tiny stages; `fake`: of the trainer that only pretends."""
    content: dict[str, Any] = {
        "apiVersion": "pipelinejob.io/v1alpha1",
        "kind": "PipelineJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"gpt": {"numLayers": 2, "hiddenSize": 16, "numHeads": 2}},
            "data": {"corpus": "python-stdlib", "sequenceLength": 16},
            "parallelism": {"pipeline": 2},
            "schedule": {"name": "1F1B", "microBatches": 4, "microBatchSize": 2},
            "training": {"steps": 20},
            "device": "cpu",
            **spec,
        },
    }
    if fake:
        container = {"name": "trainer", "command": ["python", str(FAKE)]}
        content["spec"]["template"] = {"spec": {"containers": [container]}}
    path.write_text(yaml.safe_dump(content))
    return path
