"""Where a late-bound rank waits to be told its number; nothing that depends on it is built before.

Its pod was made before anybody knew which stage it would be. Once the whole gang is bound, the operator annotates each
pod, and the kubelet shows the annotations as files; both appear together, or neither.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pipelinejob import names
from pipelinejob.progress import ExitCode
from pipelinejob_trainer.config import read_grace_s, read_metrics_port
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.httpserver import serve
from pipelinejob_trainer.lastwords import LastWords
from pipelinejob_trainer.signals import StopWish

_POLL_S = 0.2  # a file that a kubelet swaps tells nobody


def await_number(words: LastWords, environment: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Give the environment with this rank's number in it, at once where it states one.

    Answers health checks meanwhile, and ends the process if it is asked to stop.
    """
    variables = os.environ if environment is None else environment
    folder = variables.get(names.ENV_RANK)
    if not folder:
        return variables
    StopWish(grace_s=read_grace_s(variables), on_overdue=lambda: _leave(words)).listen()
    server = serve(_WaitingRoom(), read_metrics_port(variables))
    try:
        rank, rendezvous = _await(Path(folder))
    finally:
        server.shutdown()
        server.server_close()
    return {names.ENV_RENDEZVOUS: rendezvous, **variables, **_number(rank)}


class _WaitingRoom:
    """What can be seen of a rank that has no number: it is well, and not ready."""

    def metrics(self) -> bytes:
        return b""

    def progress(self) -> bytes:
        return b"{}"

    def sickness(self) -> str | None:
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


def _leave(words: LastWords) -> NoReturn:
    words.leave(ExitCode.STOPPED, "Stopped", "asked to stop before it had a number; there was nothing to save", step=0)
