"""Heartbeats in a ring: each rank watches the one before and the one after it, and passes on who is lost.

A process that ends closes its connections, which its neighbours see at once. One that is stopped,
cut off, or whose node is gone only falls silent. A slow one is not silent: heartbeats come from a
thread of their own, however long a step takes.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_BEAT_S = 0.2
_BYE = b"bye"
_LOST = b"lost "


@dataclass(slots=True)
class Edge:
    """A connection to a neighbour."""

    rank: int
    connection: socket.socket
    heard_at: float = 0.0
    received: bytes = b""
    is_open: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)


class Ring:
    """A thread that sends this rank's heartbeat and listens to its neighbours'.

    It calls `on_lost` once for each rank that is lost, with why.
    """

    def __init__(self, edges: Sequence[Edge], *, silence_s: float, on_lost: Callable[[int, str], None]) -> None:
        self._edges = edges
        self._silence_s = silence_s
        self._on_lost = on_lost
        self._known: set[int] = set()
        self._is_watching = True
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ring", daemon=True)

    def start(self) -> None:
        """Start to send and to listen."""
        now = time.monotonic()
        for edge in self._edges:
            edge.connection.settimeout(self._silence_s)  # of a send, that a stopped neighbour no longer takes
            edge.heard_at = now
        self._thread.start()

    def tell(self, rank: int, why: str) -> None:
        """Tell all that a rank is lost, as this one found out otherwise."""
        self._lost(rank, why)

    def stop_watching(self) -> None:
        """Take no silence or end for a loss any more: the ranks leave on purpose."""
        self._is_watching = False

    def close(self) -> None:
        """Say goodbye and close the connections."""
        self._is_watching = False
        self._closed.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        for edge in self._edges:
            self._send(edge, _BYE)
            edge.connection.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for edge in self._edges:
                selector.register(edge.connection, selectors.EVENT_READ, edge)
            beat_at = 0.0
            while not self._closed.is_set():
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + _BEAT_S
                    for edge in self._edges:
                        self._send(edge, b"")
                looked_at = time.monotonic()  # what came before that is read first, however late this thread is
                for key, _ in selector.select(_BEAT_S / 2):
                    if not self._receive(key.data):
                        selector.unregister(key.fileobj)
                self._look_for_silence(looked_at)

    def _receive(self, edge: Edge) -> bool:
        """Take in what a neighbour says; return whether more may come."""
        try:
            received = edge.connection.recv(4096)
        except OSError:
            received = b""
        edge.heard_at = time.monotonic()
        *lines, edge.received = (edge.received + received).split(b"\n")
        for line in lines:
            if line == _BYE:
                edge.is_open = False
            elif line.startswith(_LOST):
                rank, _, why = line.removeprefix(_LOST).decode(errors="replace").partition(" ")
                self._lost(int(rank), why)
        if not received and edge.is_open:
            edge.is_open = False
            self._lost(edge.rank, "its connection closed: the process ended")
        return bool(received)

    def _look_for_silence(self, now: float) -> None:
        for edge in self._edges:
            silent_s = now - edge.heard_at
            if edge.is_open and silent_s > self._silence_s:
                edge.is_open = False
                self._lost(edge.rank, f"no heartbeat for {silent_s:.1f} s: it is stopped, cut off, or its node is gone")

    def _lost(self, rank: int, why: str) -> None:
        if not self._is_watching or rank in self._known:
            return
        self._known.add(rank)
        for edge in self._edges:
            self._send(edge, _LOST + f"{rank} {why}".encode())
        self._on_lost(rank, why)

    def _send(self, edge: Edge, line: bytes) -> None:
        if edge.is_open:
            with edge.lock, contextlib.suppress(OSError):  # who does not take it is found by its silence or its end
                edge.connection.sendall(line + b"\n")


def neighbours(rank: int, size: int) -> tuple[int, int] | None:
    """Return the ranks before and after a rank in the ring; None if it is alone."""
    return None if size == 1 else ((rank - 1) % size, (rank + 1) % size)
