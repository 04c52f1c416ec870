"""How this process ends: an exit code and a sentence, said once, whichever thread comes first."""

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from pipelinejob.errors import PipelineJobError
from pipelinejob.progress import ExitCode, Termination
from pipelinejob_trainer.errors import PeerLostError, StoppedError, SupersededError, UserError

_MAX_BYTES = 4096  # what Kubernetes reads of a termination message
_MAX_MESSAGE = (
    1500  # characters: each may take two bytes, or six once JSON has escaped it, though a sentence rarely does
)
_MAX_FRAMES = 8


class LastWords:
    """The one place where this process ends, but for a crash."""

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._lock = threading.Lock()

    def leave(self, code: ExitCode, reason: str, message: str, *, step: int) -> NoReturn:
        """Say why and end the process at once, its threads and its half-open collectives included."""
        self._lock.acquire()  # never released: who comes second waits for the end
        words = Termination(exit_code=int(code), reason=reason, message=_shortened(message), step=step)
        sys.stdout.flush()
        if code is not ExitCode.OK:
            sys.stderr.write(f"{reason}: {message}\n")
        sys.stderr.flush()
        self._write(words)
        os._exit(code)

    def leave_because(self, error: BaseException, *, step: int) -> NoReturn:
        """End for an error; the only place where errors become exit codes."""
        if not isinstance(error, PipelineJobError):
            sys.stderr.write("".join(traceback.format_exception(error, limit=-_MAX_FRAMES)))
        code, reason = _meaning(error)
        sentence = str(error) if isinstance(error, PipelineJobError) else f"{type(error).__name__}: {error}"
        self.leave(code, reason, sentence, step=step)

    def _write(self, words: Termination) -> None:
        if self._log is None:
            return
        try:
            self._log.write_bytes(words.model_dump_json(by_alias=True).encode()[:_MAX_BYTES])
        except OSError as error:  # the exit code still speaks
            sys.stderr.write(f"warning: {self._log}: {error.strerror}; the exit code is all that is left\n")


def _meaning(error: BaseException) -> tuple[ExitCode, str]:
    match error:
        case UserError():
            return ExitCode.USER_ERROR, error.reason
        case SupersededError():
            return ExitCode.PEER_LOST, "Superseded"
        case PeerLostError():
            return ExitCode.PEER_LOST, "PeerLost"
        case StoppedError():
            return ExitCode.STOPPED, "Stopped"
        case PipelineJobError():
            return ExitCode.FAILURE, type(error).__name__.removesuffix("Error")
        case _:
            return ExitCode.FAILURE, "UnexpectedError"


def _shortened(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…"
