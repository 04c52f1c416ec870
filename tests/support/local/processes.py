"""Child processes of the test machinery: started with a log file, ended for certain, never outliving the test run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelinejob_operator.local.node.pod import free_port

# A test run that is killed must not leave API servers behind, so the kernel is asked to kill them
# with it. A small program asks and then becomes the command: code between fork and exec is not
# safe beside threads.
_DIE_WITH_PARENT = (
    sys.executable,
    "-ISc",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])",
)


class Process:
    """One child with its log; `start` after `stop` runs the same command again."""

    def __init__(
        self, name: str, command: Sequence[object], *, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._command = [*_DIE_WITH_PARENT, *(str(word) for word in command)]
        self._environment = None if environment is None else {**os.environ, **environment}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        return None if self._child is None else self._child.poll()

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        if self.alive:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def stop(self, signal_number: int = signal.SIGTERM, *, grace_s: float = 10) -> None:
        """End the whole process group: by `signal_number`, after `grace_s` by SIGKILL."""
        if self._child is None:
            return
        if self.alive:
            os.killpg(self._child.pid, signal_number)
        try:
            self._child.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


HANG_S = 600.0  # no test waits longer for anything, and none should fail by it that passes on a quiet machine


def wait_until(claim: Callable[[], object], what: str, *, timeout_s: float = HANG_S, poll_s: float = 0.1) -> None:
    """Wait until `claim` gives something true.

    Raises TimeoutError with `what` and the last error seen.
    """
    deadline = time.monotonic() + timeout_s
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if claim():
                return
        except (OSError, AssertionError, KeyError, LookupError, RuntimeError, subprocess.SubprocessError) as error:
            last = error
        time.sleep(poll_s)
    raise TimeoutError(f"not within {timeout_s:g} s: {what}" + (f" (last: {last})" if last else ""))


def free_ports(count: int) -> list[int]:
    """Return ports to listen on, all different."""
    return [free_port() for _ in range(count)]
