"""One pod's process on this machine: started in a group of its own, watched, stopped with grace or without."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launch.py")
_SIGNAL_BASE = 128  # a process that a signal ended is reported as 128 + its number, as container runtimes do


class StageProcess:
    """A running command. It has its own process group, so that a terminal's Ctrl-C reaches only the one who decides."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        folder: str | None = None,
        is_told: bool = False,
    ) -> "StageProcess":
        """Start `command`, its output appended to `log`; it dies with this process, even if that is killed.

        `is_told`: it waits for a line of input (`tell`).
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *launched(command),
                env=dict(environment),
                stdin=asyncio.subprocess.PIPE if is_told else asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                start_new_session=True,
            )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process's number, also that of its group."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    def tell(self, line: str) -> None:
        """Give it the line that it waits for."""
        assert self._process.stdin is not None, "it was started to be told"
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.close()

    async def wait(self) -> int:
        """Wait for the end, take what is left of its group along, and give the exit code."""
        code = await self._process.wait()
        self._signal(signal.SIGKILL)
        return code if code >= 0 else _SIGNAL_BASE - code

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self._process.returncode is None:
            # Only the stage itself: what it started is its own to stop, and it may need it for its
            # last checkpoint.
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End the process and all that it started."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def launched(command: Sequence[str]) -> tuple[str, ...]:
    """Return the command line that runs `command` so that it dies with this process."""
    return (sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command)
