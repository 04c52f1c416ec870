"""Processes that measure at the same time, as a node's stages compute.

The first one starts the others. Starting them needs no torch, whose import takes seconds, so all
of them import it at the same time.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Device
from pipelinejob_trainer.base.ports import free_port
from pipelinejob_trainer.process.config import read_threads

_MOST = 8  # processes; more would tell nothing new


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the processes that measure; `rank/size@port` on the command line."""

    rank: int
    size: int
    port: int

    @classmethod
    def parse(cls, text: str) -> "Worker":
        """Parse `rank/size@port`. Raises ValueError for anything else."""
        place, _, port = text.partition("@")
        rank, _, size = place.partition("/")
        return cls(rank=int(rank), size=int(size), port=int(port))

    def __str__(self) -> str:
        return f"{self.rank}/{self.size}@{self.port}"


def num_at_once(plan: Plan) -> int | None:
    """Return how many stages compute at once on this machine.

    Returns None on GPUs, where each stage has its own.
    """
    return None if plan.device is Device.GPU else max(1, usable_cores() // (read_threads() or usable_cores()))


def usable_cores() -> int:
    """Count the processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def first_worker(plan: Plan) -> Worker | None:
    """Return the first of a plan's workers.

    Returns None where one process is enough: on a GPU, or for one rank.
    """
    ranks, at_once = plan.parallelism.pipeline * plan.parallelism.data, num_at_once(plan)
    if at_once is None or ranks == 1:
        return None
    return Worker(rank=0, size=max(2, min(ranks, at_once, _MOST)), port=free_port())


@contextmanager
def other_workers(plan: Path, worker: Worker) -> Iterator[None]:
    """Start the other workers; they end when this process does."""
    command = [sys.executable, "-m", "pipelinejob_trainer", "profile", "--plan", str(plan), "--worker"]
    others = [
        # Their standard input ends when this process does.
        subprocess.Popen(
            [*command, str(Worker(rank=rank, size=worker.size, port=worker.port))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, worker.size)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def end_with_parent() -> None:
    """End this process when the one that started it does."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
