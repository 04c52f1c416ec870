"""Ranks forked from one process that has imported torch: a thousand ranks then cost no thousand imports."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TAKE_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER
_TESTS = Path(__file__).parents[3]


@dataclass(slots=True)
class Forked:
    """A child of this process, as `subprocess.Popen` would show it."""

    pid: int
    code: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def poll(self) -> int | None:
        with self._lock:
            if self.code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if pid else None
            return self.code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Forks:
    """Where ranks are forked from."""

    def __init__(self) -> None:
        paths = os.pathsep.join((str(_TESTS), os.environ.get("PYTHONPATH", "")))
        self._lock = threading.Lock()
        self._source = subprocess.Popen(
            [sys.executable, "-m", "support.training.forking.fork_source"],
            env=os.environ | {"PYTHONPATH": paths.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, environment: Mapping[str, str], log: Path, *, network: Path | None = None) -> Forked:
        assert self._source.stdin is not None
        assert self._source.stdout is not None
        place = {
            "parent": os.getpid(),
            "folder": str(Path.cwd()),
            "environment": dict(environment),
            "log": str(log.resolve()),
            "network": None if network is None else str(network),
        }
        with self._lock, _taking_orphans():
            self._source.stdin.write(json.dumps(place) + "\n")
            self._source.stdin.flush()
            return Forked(pid=int(self._source.stdout.readline()))

    def close(self) -> None:
        self._source.kill()
        self._source.wait()


@functools.cache
def forks_of_this_process() -> Forks:
    """Return where all tests of this process fork ranks from; it ends with this process, whose pipe it reads."""
    return Forks()


@contextmanager
def _taking_orphans() -> Iterator[None]:
    """Become the parent of orphans for a moment: those of other tests have a reaper of their own."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_TAKE_ORPHANS, 1)
    try:
        yield
    finally:
        prctl(_TAKE_ORPHANS, 0)
