"""The stage's HTTP server: /metrics, /healthz, /readyz and /progress on one port."""

import hmac
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from pipelinejob_trainer.base.errors import UserError

_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_JSON = "application/json"
_MAX_POSTED_BYTES = 4 << 20  # a plan among it, which takes 1 MiB at most, and its quotes


class StatusSource(Protocol):
    """What the server shows of a stage."""

    def metrics(self) -> bytes:
        """Return the metrics, in Prometheus' text format."""

    def progress(self) -> bytes:
        """Return the stage's progress, as JSON."""

    def unhealthy_reason(self) -> str | None:
        """Return why this process should be restarted; None if it is healthy."""

    def is_ready(self) -> bool:
        """Return whether the stage is training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ear:
    """What takes what is posted, and the token by which those are known who may post."""

    hear: Callable[[bytes], None]  # raises ValueError for what it does not take
    token: str
    path: str = "/incarnation"

    def knows(self, authorization: str | None) -> bool:
        """Tell whether a request's Authorization is of one who may post."""
        return hmac.compare_digest((authorization or "").encode(), f"Bearer {self.token}".encode())


def serve(source: StatusSource, port: int, *, ear: Ear | None = None) -> ThreadingHTTPServer:
    """Serve in a thread, on all interfaces; without an `ear` nothing can be posted.

    Raises UserError when the port is taken.
    """

    class Handler(_Handler):
        shown = source
        listens = ear

    try:
        server = _Server(("0.0.0.0", port), Handler)  # noqa: S104  # kubelet and Prometheus come from outside
    except OSError as error:
        raise UserError(
            "PortTaken", f"metrics port {port}: {error.strerror}; free it, or let the operator choose another"
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that did not wait, as while torch is imported."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    shown: StatusSource
    listens: Ear | None = None
    timeout = 10  # of a client that stops talking

    def do_GET(self) -> None:  # the standard library's name
        self._send(*self._answer(self.path.partition("?")[0]))

    def do_POST(self) -> None:  # likewise
        size = int(self.headers.get("Content-Length") or 0)
        if self.listens is None or self.path != self.listens.path or size > _MAX_POSTED_BYTES:
            where = self.listens.path if self.listens else "/incarnation, where recovery in place is on"
            self._send(404, _TEXT, f"nothing is taken here now but what the operator posts to {where}\n".encode())
            return
        body = self.rfile.read(size)  # before any answer: a client that still writes would not read it
        if not self.listens.knows(self.headers.get("Authorization")):
            self._send(403, _TEXT, b"only the operator tells who meets; it knows this pod's token\n")
            return
        try:
            self.listens.hear(body)
        except ValueError as error:
            self._send(409, _TEXT, f"{error}\n".encode())
            return
        self._send(200, _TEXT, b"ok\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        match path:
            case "/metrics":
                return 200, _METRICS, self.shown.metrics()
            case "/progress":
                return 200, _JSON, self.shown.progress()
            case "/healthz":
                reason = self.shown.unhealthy_reason()
                return (200, _TEXT, b"ok\n") if reason is None else (503, _TEXT, f"{reason}\n".encode())
            case "/readyz":
                return (200, _TEXT, b"ok\n") if self.shown.is_ready() else (503, _TEXT, b"not training yet\n")
            case _:
                return 404, _TEXT, b"try /metrics, /progress, /healthz or /readyz\n"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the standard library's name
        """Log nothing: there is a scrape every few seconds."""
