"""The front's HTTP server: it runs until it is asked to stop, and then ends the answers in work.

Whoever leads requests here notices only after a while that this stage is to stop, so new ones are
answered for that long, and their connections closed. Then no new ones come in, and those in work
are ended.
"""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.process.output import say
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.serving.engine import Engine
from pipelinejob_trainer.serving.front.app import Front

LOOK_S = 0.2
_BROKEN_S = 20.0  # answers in work wait so long for a stage that is missing, once this one is to stop
_KEPT_S = 620  # an idle connection; longer than load balancers keep theirs, so that none sends into a closed one
_MARGIN_S = 8.0  # of the grace period, for what comes after the last answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a front ends: clients may still come for `leaving_s`, and all in work is to be over in `grace_s`."""

    leaving_s: float
    grace_s: float

    @property
    def drain_s(self) -> float:
        """Return the seconds that answers in work may take once no new ones come in."""
        return max(1.0, self.grace_s - self.leaving_s - _MARGIN_S)


def listening(port: int) -> socket.socket:
    """Listen on the front's port. Raises UserError where it is taken."""
    try:
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise UserError(
            "PortTaken", f"spec.serving.port: {port}: {error.strerror}; free it, or choose another"
        ) from error


def http_server(front: Front, ending: Ending) -> uvicorn.Server:
    """Return what answers HTTP; it says nothing of requests, which may hold keys and what people write."""
    return uvicorn.Server(
        uvicorn.Config(
            front.app(),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEPT_S,
            timeout_graceful_shutdown=int(ending.drain_s),
            server_header=False,
            lifespan="off",
        )
    )


def run_front(
    front: Front,
    engine: Engine,
    listener: socket.socket,
    status: StageStatus,
    *,
    is_stopping: Callable[[], bool],
    ending: Ending,
) -> None:
    """Answer until asked to stop, then end what is in work.

    Raises what ended the engine against its will, and StuckError where it computes without end.
    """
    server = http_server(front, ending)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="front", daemon=True)
    engine.start()
    thread.start()
    was_ready = False
    while thread.is_alive() and engine.error is None and not is_stopping():
        engine.check_moves()
        status.begin_serving(is_ready=engine.is_ready)
        if engine.is_ready and not was_ready:
            say(f"serving {front.model} on port {listener.getsockname()[1]}")
        was_ready = engine.is_ready
        thread.join(LOOK_S)
    front.is_leaving = True
    _look(thread, engine, status, for_s=ending.leaving_s)
    server.should_exit = True
    _drain(thread, engine, status)
    engine.close()
    if engine.error is not None:
        raise engine.error


def _look(thread: threading.Thread, engine: Engine, status: StageStatus, *, for_s: float) -> None:
    """Go on answering for a while, though nobody is to begin to ask."""
    end = time.monotonic() + for_s
    while thread.is_alive() and engine.error is None and (left := end - time.monotonic()) > 0:
        status.begin_serving(is_ready=False)
        thread.join(min(LOOK_S, left))


def _drain(thread: threading.Thread, engine: Engine, status: StageStatus) -> None:
    """Wait for the answers in work; fail them where they wait in vain for a stage that is missing."""
    whole_at = time.monotonic()
    while thread.is_alive():
        status.begin_serving(is_ready=False)
        if engine.is_ready:
            whole_at = time.monotonic()
        if engine.error is not None or time.monotonic() - whole_at > _BROKEN_S:
            engine.close()
        thread.join(LOOK_S)
