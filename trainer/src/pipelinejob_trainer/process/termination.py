"""How this process ends: one exit code and one message, from whichever thread is first."""

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.progress import ExitCode, Termination
from pipelinejob_trainer.base.errors import (
    LayerError,
    LeftError,
    NotNeededError,
    PeerLostError,
    StoppedError,
    SupersededError,
    UserError,
)

_MAX_BYTES = 4096  # what Kubernetes reads of a termination message
_MAX_MESSAGE = (
    1500  # characters: each may take two bytes, or six once JSON has escaped it, though a sentence rarely does
)
_MAX_FRAMES = 8


class ProcessExit:
    """Ends this process; only a crash ends it in another way."""

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._is_leaving = False

    def intercept_os_exit(self) -> None:
        """Make os._exit raise SystemExit: a user's layer could end the process without a message.

        With status 0 the job would even count as completed. Forked processes keep the original.
        """
        leave, process = os._exit, os.getpid()

        def exit_(status: int) -> NoReturn:
            if self._is_leaving or os.getpid() != process:
                leave(status)
            raise SystemExit(status)

        setattr(os, "_exit", exit_)  # noqa: B010 # a module's function, to a type checker, is for ever

    def end(self, code: ExitCode, reason: str, message: str, *, step: int) -> NoReturn:
        """Write the reason and end the process at once, with its threads and open collectives."""
        self.end_as(Termination(exit_code=int(code), reason=reason, message=message, step=step))

    def end_as(self, words: Termination) -> NoReturn:
        """End the process with these last words, as `end` does."""
        self._lock.acquire()  # never released: who comes second waits for the end
        sys.stdout.flush()
        if words.exit_code != ExitCode.OK:
            sys.stderr.write(f"{words.reason}: {words.message}\n")
        sys.stderr.flush()
        self._write(words.model_copy(update={"message": _shortened(words.message)}))
        self._is_leaving = True
        os._exit(words.exit_code)

    def end_with_error(self, error: BaseException, *, step: int) -> NoReturn:
        """End because of an error; the only place where errors become exit codes."""
        foreign = error.__cause__ if isinstance(error, LayerError) else error
        if foreign is not None and not isinstance(foreign, PipelineJobError):
            sys.stderr.write("".join(traceback.format_exception(foreign, limit=-_MAX_FRAMES)))
        code, reason = _meaning(error)
        sentence = str(error) if isinstance(error, PipelineJobError) else f"{type(error).__name__}: {error}"
        self.end(code, reason, sentence, step=step)

    def _write(self, words: Termination) -> None:
        if self._log is None:
            return
        try:
            self._log.write_bytes(words.model_dump_json(by_alias=True).encode()[:_MAX_BYTES])
        except OSError as error:  # the exit code still speaks
            sys.stderr.write(f"warning: {self._log}: {error.strerror}; the exit code is all that is left\n")


def _meaning(error: BaseException) -> tuple[ExitCode, str]:  # noqa: PLR0911 # a list of endings
    match error:
        case UserError():
            return ExitCode.USER_ERROR, error.reason
        case PeerLostError():
            return ExitCode.PEER_LOST, "Superseded" if isinstance(error, SupersededError) else "PeerLost"
        case LeftError():
            return ExitCode.LEFT, error.reason
        case NotNeededError():
            return ExitCode.OK, "NotNeeded"
        case StoppedError():
            return ExitCode.STOPPED, "Stopped"
        case PipelineJobError():
            return ExitCode.FAILURE, type(error).__name__.removesuffix("Error")
        case _:
            return ExitCode.FAILURE, "UnexpectedError"


def _shortened(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…"
