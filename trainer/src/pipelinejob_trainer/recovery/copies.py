"""Copies of a rank's borders travel to its buddy beside training, over a connection of their own.

A border may be counted on once its buddy has it. So a rank waits for that before it lets the
others know that it has ended the next step: no rank can then be so far ahead that a lost one's
last border is too old for it.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.base.waiting import Awaiting
from pipelinejob_trainer.recovery import wire
from pipelinejob_trainer.recovery.history import Border, History

_ACK = b"+"


class Sender:
    """Sends this rank's borders to its buddy, one at a time, in a thread."""

    def __init__(self, connection: socket.socket, buddy: int, *, is_over: Callable[[], bool]) -> None:
        self._connection = connection
        self._buddy = buddy
        self._is_over = is_over
        self._changed = threading.Condition()
        self._next: Border | None = None
        self._failure: str | None = None
        self._is_closed = False
        connection.settimeout(None)
        threading.Thread(target=self._run, name="copies", daemon=True).start()

    def send(self, border: Border) -> None:
        """Start to send a border; the last one must have arrived."""
        with self._changed:
            assert self._next is None, "the last one has arrived"
            self._next = border
            self._changed.notify_all()

    def await_arrival(self) -> None:
        """Wait until the buddy has what was sent last.

        Raises PeerLostError if it never will.
        """
        with self._changed, Awaiting(self._buddy):
            while self._next is not None:
                if self._failure is not None or self._is_over():
                    raise PeerLostError(f"rank {self._buddy}, which keeps this rank's copies, went away")
                self._changed.wait(0.1)

    def close(self) -> None:
        """End the thread and the connection."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        _end(self._connection)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_closed)
                border = self._next
            if border is None or self._is_closed:
                return
            try:
                wire.send(self._connection, border)
                failure = None if self._connection.recv(1) == _ACK else "closed"
            except OSError as error:
                failure = str(error)
            with self._changed:
                self._failure = failure
                self._next = None if failure is None else self._next
                self._changed.notify_all()
            if failure is not None:
                return


class Keeper:
    """Keeps the borders that another rank sends, in a thread."""

    def __init__(self, connection: socket.socket, rank: int, history: History) -> None:
        self._connection = connection
        self._rank = rank
        self._history = history
        self._layout = history.layout
        connection.settimeout(None)
        threading.Thread(target=self._run, name="keeper", daemon=True).start()

    def close(self) -> None:
        """End the thread and the connection."""
        _end(self._connection)

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the ring tells of a rank that is lost
            while (border := wire.receive(self._connection)) is not None:
                self._history.keep_copy(self._rank, border, layout=self._layout)
                self._connection.sendall(_ACK)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
