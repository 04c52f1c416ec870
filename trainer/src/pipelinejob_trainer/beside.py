"""Processes that measure side by side, as a node's stages compute; the first one starts the others.

Starting them needs no torch, whose import takes seconds: all of them import it at the same time.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelinejob.plan import Plan
from pipelinejob.spec import Device
from pipelinejob_trainer.config import read_threads

_MOST = 8  # processes; more would tell nothing new


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One process's place among those that measure: written `rank/size@port` on the command line."""

    rank: int
    size: int
    port: int

    @classmethod
    def parse(cls, text: str) -> "Seat":
        """Read a seat. Raises ValueError for what is none."""
        place, _, port = text.partition("@")
        rank, _, size = place.partition("/")
        return cls(rank=int(rank), size=int(size), port=int(port))

    def __str__(self) -> str:
        return f"{self.rank}/{self.size}@{self.port}"


def num_at_once(plan: Plan) -> int | None:
    """Give how many stages truly compute at once on this machine; None on GPUs, where each has its own."""
    return None if plan.device is Device.GPU else max(1, usable_cores() // (read_threads() or usable_cores()))


def usable_cores() -> int:
    """Count the processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def first_seat(plan: Plan) -> Seat | None:
    """Give this process's seat among those that measure a plan; None where one is enough: on a GPU, for one rank."""
    ranks, at_once = plan.parallelism.pipeline * plan.parallelism.data, num_at_once(plan)
    if at_once is None or ranks == 1:
        return None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Seat(rank=0, size=max(2, min(ranks, at_once, _MOST)), port=probe.getsockname()[1])


@contextmanager
def others_started(plan: Path, seat: Seat) -> Iterator[None]:
    """Start the other processes; they end with this one, however it ends."""
    command = [sys.executable, "-m", "pipelinejob_trainer", "profile", "--plan", str(plan), "--beside"]
    others = [
        # Their standard input ends when this process does.
        subprocess.Popen(
            [*command, str(Seat(rank=rank, size=seat.size, port=seat.port))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, seat.size)
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
