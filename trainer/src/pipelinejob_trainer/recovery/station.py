"""Where the other ranks reach this one, and where it hears of incarnations: sockets of our own, and no torch.

A call opens with one line of JSON that says who calls, of which incarnation, and what for. Calls
of an older incarnation, another attempt or another job are closed unheard, so a process that was
stopped and wakes up later can join nothing.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pydantic import ValidationError

from pipelinejob.contract.incarnation import Incarnation, Member
from pipelinejob_trainer.base.errors import PeerLostError

_HELLO_S = 5.0  # for the first line of a call
_MAX_HELLO_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who calls, of which incarnation, and what for."""

    job: str  # namespace/name
    attempt: int
    incarnation: int
    rank: int
    purpose: str
    key: str  # of the incarnation, which only its members were told


class Station:
    """A listening socket, the calls that came in, and the newest incarnation heard of."""

    def __init__(self, *, job: str, attempt: int, rank: int) -> None:
        self.rank = rank
        self._job = job
        self._attempt = attempt
        self._changed = threading.Condition()
        self._heard: Incarnation | None = None
        self._at_border: dict[int, Incarnation] = {}  # those that are to begin at a step border, by number
        self._calls: dict[tuple[int, str, int, str], socket.socket] = {}
        self._listener = socket.create_server(("", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="station", daemon=True).start()

    def hear(self, body: bytes) -> Incarnation:
        """Take in an incarnation, as JSON, that the operator posts, and return it.

        Raises ValueError for one that is no JSON of its shape, of another attempt, or not newer
        than the last.
        """
        try:
            incarnation = Incarnation.model_validate_json(body)
        except ValidationError as error:
            raise ValueError(f"no incarnation: {error}") from error
        with self._changed:
            newest = max((self._newest(), *self._at_border))
            if incarnation.attempt != self._attempt or incarnation.number <= newest:
                raise ValueError(
                    f"incarnation {incarnation.number} of attempt {incarnation.attempt}: this process is of attempt"
                    f" {self._attempt} and has heard of incarnation {newest}"
                )
            if incarnation.at_border:
                self._at_border[incarnation.number] = incarnation
            else:
                self._begin(incarnation)
            self._changed.notify_all()
        return incarnation

    def await_any(self, *, within_s: float, is_over: Callable[[], bool]) -> Incarnation | None:
        """Return the newest incarnation as soon as one is heard of, to begin now or later; None once `is_over`.

        Raises PeerLostError if none is heard of in time.
        """
        deadline = time.monotonic() + within_s
        with self._changed:
            while True:
                if self._at_border or self._heard is not None:
                    return self._at_border[max(self._at_border)] if self._at_border else self._heard
                if is_over():
                    return None
                if time.monotonic() > deadline:
                    raise PeerLostError(f"no incarnation of the gang was heard of within {within_s:g} s")
                self._changed.wait(0.1)

    def next_at_border(self) -> int:
        """Return the number of the newest incarnation that is to begin at a step border; 0 if there is none."""
        with self._changed:
            return max(self._at_border, default=0)

    def at_border(self, number: int) -> Incarnation:
        """Return an incarnation that is to begin at a step border, by its number."""
        with self._changed:
            return self._at_border[number]

    def begin_at_border(self, number: int) -> None:
        """Take the border for reached: from now on this incarnation is the newest heard of."""
        with self._changed:
            self._begin(self._at_border[number])

    def await_newer(
        self, number: int, *, within_s: float, is_over: Callable[[], bool] = lambda: False, joins: bool = False
    ) -> Incarnation | None:
        """Return the first incarnation after this number; None once `is_over`.

        A rank that `joins` a gang which trains begins with it once one of its members calls: it
        has reached the border. Raises PeerLostError if none is heard of in time.
        """
        deadline = time.monotonic() + within_s
        with self._changed:
            while self._newest() <= number:
                called = {each for each, *_ in self._calls} & self._at_border.keys() if joins else ()
                if called:
                    self._begin(self._at_border[max(called)])
                    break
                if is_over():
                    return None
                if time.monotonic() > deadline:
                    raise PeerLostError(f"no new incarnation of the gang was heard of within {within_s:g} s")
                self._changed.wait(0.1)
            return self._heard

    def call(self, incarnation: Incarnation, rank: int, purpose: str, *, within_s: float) -> socket.socket:
        """Connect to another rank.

        Raises PeerLostError if it does not answer.
        """
        host, port = _address(incarnation.members[rank])
        hello = Call(
            job=self._job,
            attempt=self._attempt,
            incarnation=incarnation.number,
            rank=self.rank,
            purpose=purpose,
            key=incarnation.key,
        )
        try:
            connection = socket.create_connection((host, port), timeout=within_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(json.dumps(asdict(hello)).encode() + b"\n")
        except OSError as error:
            raise PeerLostError(f"rank {rank} at {host}:{port} does not answer: {error}") from error
        return connection

    def take_call(
        self,
        incarnation: Incarnation,
        rank: int,
        purpose: str,
        *,
        within_s: float,
        is_over: Callable[[], bool] = lambda: False,
    ) -> socket.socket:
        """Wait for another rank's call.

        Raises PeerLostError if it does not come, or once `is_over`.
        """
        wanted, deadline = (incarnation.number, purpose, rank, incarnation.key), time.monotonic() + within_s
        with self._changed:
            while wanted not in self._calls:
                if is_over() or time.monotonic() > deadline:
                    raise PeerLostError(f"rank {rank} did not call within {within_s:g} s")
                self._changed.wait(0.1)
            return self._calls.pop(wanted)

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which ends the wait for calls
        self._listener.close()
        with self._changed:
            for connection in self._calls.values():
                _close(connection)

    def _newest(self) -> int:
        return self._heard.number if self._heard else 0

    def _begin(self, incarnation: Incarnation) -> None:
        """Take part in no older one from now on; whoever holds the lock calls it."""
        self._heard = incarnation
        self._at_border = {number: each for number, each in self._at_border.items() if number > incarnation.number}
        for old in [each for each in self._calls if each[0] < incarnation.number]:
            _close(self._calls.pop(old))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._open, args=(connection,), name="call", daemon=True).start()

    def _open(self, connection: socket.socket) -> None:
        connection.settimeout(_HELLO_S)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            call = Call(**json.loads(_line(connection)))
        except (OSError, ValueError, TypeError):  # no rank of ours
            _close(connection)
            return
        with self._changed:
            if (call.job, call.attempt) != (self._job, self._attempt) or call.incarnation < self._newest():
                _close(connection)
                return
            self._calls[call.incarnation, call.purpose, call.rank, call.key] = connection
            self._changed.notify_all()


def _address(member: Member) -> tuple[str, int]:
    host, _, port = member.address.rpartition(":")
    return host.strip("[]"), int(port)


def _line(connection: socket.socket) -> bytes:
    """Read one line, and nothing that comes after it."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > _MAX_HELLO_BYTES:
            raise ValueError("no line")
        line += byte
    return line


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
