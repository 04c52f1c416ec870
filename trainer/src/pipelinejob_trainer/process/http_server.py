"""The stage's HTTP server: /metrics, /healthz, /readyz and /progress on one port."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from pipelinejob_trainer.base.errors import UserError

_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_JSON = "application/json"


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


def serve(source: StatusSource, port: int) -> ThreadingHTTPServer:
    """Serve in a thread, on all interfaces.

    Raises UserError when the port is taken.
    """

    class Handler(_Handler):
        shown = source

    try:
        server = ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104  # kubelet and Prometheus come from outside
    except OSError as error:
        raise UserError(
            "PortTaken", f"metrics port {port}: {error.strerror}; free it, or let the operator choose another"
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    shown: StatusSource
    timeout = 10  # of a client that stops talking

    def do_GET(self) -> None:  # the standard library's name
        status, kind, body = self._answer(self.path.partition("?")[0])
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
