"""A warm process: it imports all that a stage needs, and becomes one when it is told whose place to take.

On one machine it is told on stdin, with the environment of the stage; in a pod by the operator,
over HTTP.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank
from pipelinejob.contract.progress import SPARE_REPLICA, ExitCode, Phase, Progress
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.process.config import read_attempt, read_grace_s, read_metrics_port, read_spare
from pipelinejob_trainer.process.http_server import Ear, serve
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.termination import ProcessExit


def await_place() -> None:
    """Wait for a line of JSON on stdin, with the environment and the log of a stage, and take them over.

    The process ends here if stdin does.
    """
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    place = json.loads(line)
    os.environ.clear()
    os.environ.update(place["environment"])
    log = os.open(place["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def await_rank_of_another(
    variables: Mapping[str, str], process_exit: ProcessExit, *, warm_up: Callable[[Path], None]
) -> Mapping[str, str]:
    """Return the environment with the rank whose place this spare takes, at once where it is none.

    It warms up first, for its plan, and says so. It answers health checks meanwhile, and ends the
    process if it is asked to stop. Raises UserError where it could not know that its operator
    speaks to it.
    """
    number = read_spare(variables)
    if number is None:
        return variables
    token = variables.get(names.ENV_TOKEN)
    if not token:
        raise UserError("NoToken", f"{names.ENV_TOKEN} is not set, by which a spare knows its operator; set it, too")
    StopRequest(grace_s=read_grace_s(variables), on_overdue=lambda: _leave(process_exit)).listen()
    spare = _Spare(number=number, attempt=read_attempt(variables))
    server = serve(spare, read_metrics_port(variables), ear=Ear(hear=spare.hear, token=token, path="/rank"))
    try:
        warm_up(Path(variables[names.ENV_PLAN]))
        spare.is_warm = True
        place = spare.await_place()
    finally:
        server.shutdown()
        server.server_close()
    sys.stdout.write(f"takes the place of stage {place.stage} of replica {place.replica}\n")
    return {**variables, names.ENV_REPLICA: str(place.replica), names.ENV_STAGE: str(place.stage)}


class _Spare:
    """What the server shows of a spare, ready once it is warm; and what it hears."""

    def __init__(self, *, number: int, attempt: int) -> None:
        self._number, self._attempt = number, attempt
        self._place: GivenRank | None = None
        self._is_told = threading.Event()
        self.is_warm = False

    def hear(self, body: bytes) -> None:
        """Take a place; raises ValueError for that of another attempt, or another than it has taken."""
        place = GivenRank.model_validate_json(body)
        if place.attempt != self._attempt:
            raise ValueError(f"a place in attempt {place.attempt}, but this is a spare of attempt {self._attempt}")
        if self._place not in {None, place}:
            raise ValueError(f"it has taken the place of {self._place}")
        self._place = place
        self._is_told.set()

    def await_place(self) -> GivenRank:
        """Wait to be told whose place to take."""
        self._is_told.wait()
        assert self._place is not None, "it was told"
        return self._place

    def metrics(self) -> bytes:
        return b""

    def progress(self) -> bytes:
        phase = Phase.SPARE if self.is_warm else Phase.STARTING
        said = Progress(replica=SPARE_REPLICA, stage=self._number, attempt=self._attempt, phase=phase, step=0)
        return said.model_dump_json(by_alias=True, exclude_none=True).encode()

    def unhealthy_reason(self) -> str | None:
        return None

    def is_ready(self) -> bool:
        return self.is_warm


def _leave(process_exit: ProcessExit) -> NoReturn:
    process_exit.end(
        ExitCode.STOPPED, "Stopped", "asked to stop before it took a stage's place; there was nothing to save", step=0
    )
