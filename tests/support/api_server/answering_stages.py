"""Stages of a job that recovers in place, as far as an operator sees them: they answer, and are told who meets."""

from __future__ import annotations

import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank, Incarnation, Lost
from pipelinejob.contract.progress import SPARE_REPLICA, Phase, Progress

_BORDER_S = 0.1


class Stage:
    """One stage, at an address of its own on the port of all stages; it answers once it says something."""

    def __init__(self, address: str, number: int) -> None:
        self.address, self.number = address, number
        self.heard: list[Incarnation] = []
        self.has_left = threading.Event()  # as the others go on without it
        self.token: str | None = None  # of the pod whose process this is
        self._said: Progress | None = None
        self._server = ThreadingHTTPServer((address, names.PORT_METRICS), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self, pod: dict[str, Any], *, step: int = 0, lost: tuple[int, ...] = ()) -> None:
        """Be the process of a pod, and wait to be told who meets."""
        self.token = _token(pod)
        self._say(step=step, phase=Phase.STARTING, awaits_incarnation=True, lost=_lost(lost))

    def keep_warm(self, pod: dict[str, Any], number: int) -> None:
        """Be the process of a spare's pod, and wait to be told whose place to take."""
        self.token = _token(pod)
        self._said = Progress(replica=SPARE_REPLICA, stage=number, attempt=1, phase=Phase.SPARE, step=0)

    def take(self, place: GivenRank) -> None:
        """Be told whose place to take; wait to be told who meets."""
        self.number = place.stage
        self._say(step=0, phase=Phase.STARTING, awaits_incarnation=True)

    def train(self, *, step: int) -> None:
        """Have met, and go on."""
        self._say(step=step, phase=Phase.TRAINING)

    def hear(self, told: Incarnation, *, step: int) -> None:
        """Be told who meets, now or at a border that comes soon; who is no member then ends."""
        if not told.at_border:
            self.heard.append(told)
            self.train(step=step)
            return
        assert self._said is not None, "it was asked"
        self._said = self._said.model_copy(update={"moves_to": told.number})
        threading.Timer(_BORDER_S, self._go_over, [told, step + 1]).start()

    def _go_over(self, told: Incarnation, step: int) -> None:
        self.heard.append(told)
        if self.number in {each.stage for each in told.members}:
            self._say(step=step, phase=Phase.TRAINING, stall_s=_BORDER_S)
        else:
            self.die()
            self.has_left.set()

    def die(self) -> None:
        """Answer nothing any more."""
        self._said = None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _say(self, **account: Any) -> None:
        heard = self.heard[-1].number if self.heard else 0
        self._said = Progress(
            replica=0, stage=self.number, attempt=1, control_port=5000 + self.number, incarnation=heard, **account
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stage = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the standard library's name
                said = stage._said
                self._answer(503 if said is None else 200, b"" if said is None else said.model_dump_json().encode())

            def do_POST(self) -> None:  # likewise
                body = self.rfile.read(int(self.headers["Content-Length"]))
                said = stage._said
                if self.headers.get("Authorization") != f"Bearer {stage.token}" or said is None:
                    self._answer(403, b"")
                    return
                if self.path == "/rank":
                    stage.take(GivenRank.model_validate_json(body))
                else:
                    stage.hear(Incarnation.model_validate_json(body), step=said.step)
                self._answer(200, b"")

            def _answer(self, code: int, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler


class Stages(list[Stage]):
    """Stages at addresses of this machine that no other test has; use as a context manager."""

    def __init__(self, count: int) -> None:
        block = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        super().__init__(Stage(f"{block}.{number + 1}", number) for number in range(count))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stage in self:
            stage.close()


def _token(pod: dict[str, Any]) -> str:
    (variables,) = (each["env"] for each in pod["spec"]["containers"] if each["name"] == names.CONTAINER_TRAINER)
    return next(str(each["value"]) for each in variables if each["name"] == names.ENV_TOKEN)


def _lost(stages: tuple[int, ...]) -> tuple[Lost, ...]:
    return tuple(Lost(replica=0, stage=each, why="its connection closed: the process ended") for each in stages)
