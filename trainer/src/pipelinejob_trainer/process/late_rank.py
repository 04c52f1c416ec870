"""A late-bound rank waits here for its number; nothing that depends on the number is built before.

The pod was created before its stage was decided. Once all pods of the gang are bound to nodes, the
operator annotates each of them, and the kubelet shows the annotations as files; both appear
together, or neither.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pipelinejob.base import names
from pipelinejob.contract.progress import ExitCode
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.process.config import read_grace_s, read_metrics_port
from pipelinejob_trainer.process.http_server import serve
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.termination import ProcessExit

_POLL_S = 0.2  # nothing notifies this process when the kubelet swaps a file


def await_rank(process_exit: ProcessExit, environment: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Return the environment with this rank's number in it, at once where it is set already.

    Answers health checks meanwhile, and ends the process if it is asked to stop.
    """
    variables = os.environ if environment is None else environment
    folder = variables.get(names.ENV_RANK)
    if not folder:
        return variables
    StopRequest(grace_s=read_grace_s(variables), on_overdue=lambda: _leave(process_exit)).listen()
    server = serve(_UnnumberedRank(), read_metrics_port(variables))
    try:
        rank, rendezvous = _await(Path(folder))
    finally:
        server.shutdown()
        server.server_close()
    return {names.ENV_RENDEZVOUS: rendezvous, **variables, **_number(rank)}


class _UnnumberedRank:
    """What the server shows of a rank without a number: healthy, but not ready."""

    def metrics(self) -> bytes:
        return b""

    def progress(self) -> bytes:
        return b"{}"

    def unhealthy_reason(self) -> str | None:
        return None

    def is_ready(self) -> bool:
        return False


def _await(folder: Path) -> tuple[str, str]:
    while True:
        rank, rendezvous = (_text(folder / name) for name in (names.RANK_FILE, names.RENDEZVOUS_FILE))
        if rank and rendezvous:
            return rank, rendezvous
        time.sleep(_POLL_S)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""


def _number(rank: str) -> dict[str, str]:
    replica, _, stage = rank.partition("/")
    if not (replica.isdecimal() and stage.isdecimal()):
        raise UserError(
            "BadEnvironment", f"{names.RANK_FILE} says {rank!r}, not replica/stage; only the operator should write it"
        )
    return {names.ENV_REPLICA: replica, names.ENV_STAGE: stage}


def _leave(process_exit: ProcessExit) -> NoReturn:
    process_exit.end(
        ExitCode.STOPPED, "Stopped", "asked to stop before it had a number; there was nothing to save", step=0
    )
