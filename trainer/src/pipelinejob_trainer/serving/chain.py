"""The chain as the first stage sees it: who has joined, who beats, and what comes back."""

import contextlib
import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.passes import Outcome, Pass
from pipelinejob_trainer.base.errors import PeerLostError, UserError
from pipelinejob_trainer.serving.later_stage import SILENCE_S
from pipelinejob_trainer.serving.meter import LONGEST_PASS_S, Reading, StuckError, check_moves
from pipelinejob_trainer.serving.wire import Frame, Kind, outcome_of, receive, send


@dataclass(frozen=True, slots=True)
class Joined:
    """A stage has dialled."""

    stage: int
    connection: socket.socket
    address: tuple[str, int]
    cost: PassCost


@dataclass(frozen=True, slots=True)
class Left:
    """A stage is gone, or silent, or stuck."""

    stage: int
    connection: socket.socket
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A stage cannot read the weights that the first one has, for they are not there any more."""

    weights: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A pass has come to its end."""

    connection: socket.socket
    outcome: Outcome


Event = Joined | Left | Returned | Gone


class Chain:
    """The stages behind the first one. What happens goes into `events`; all else is called by one thread.

    Raises UserError where the port is taken.
    """

    def __init__(
        self,
        num_later: int,
        *,
        port: int,
        events: "queue.SimpleQueue[object]",
        silence_s: float = SILENCE_S,
        weights: str = "",
    ) -> None:
        self._num_later = num_later
        self._events = events
        self._silence_s = silence_s
        self._weights = weights
        self._members: dict[int, Joined] = {}
        self._readings: dict[int, Reading] = {}
        self._first: socket.socket | None = None
        self._number = 0
        self._closed = False
        self._listener: socket.socket | None = None
        if num_later:
            try:
                self._listener = socket.create_server(("", port), backlog=64)
            except OSError as error:
                raise UserError("PortTaken", f"port {port} of the chain: {error.strerror}; free it") from error
            threading.Thread(target=self._accept, args=(self._listener,), name="chain", daemon=True).start()

    @property
    def port(self) -> int:
        """The port that stages dial."""
        assert self._listener is not None, "a chain of several stages listens"
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def is_whole(self) -> bool:
        """Whether all stages are there and linked."""
        return not self._num_later or self._first is not None

    @property
    def missing(self) -> tuple[int, ...]:
        """The stages that have not joined."""
        return tuple(stage for stage in range(1, self._num_later + 1) if stage not in self._members)

    @property
    def number(self) -> int:
        """Count the chains that were formed."""
        return self._number

    @property
    def costs(self) -> tuple[PassCost, ...]:
        """What a pass costs each of the chain's stages, as they measured it."""
        return tuple(self._members[stage].cost for stage in sorted(self._members))

    @property
    def readings(self) -> Mapping[int, Reading]:
        """What each stage last said of its work."""
        return dict(self._readings)

    def joined(self, event: Joined) -> bool:
        """Take a stage in; return whether that makes the chain whole. A stage that comes twice replaces itself."""
        before = self._members.get(event.stage)
        if before is not None:
            self.break_up()
        self._members[event.stage] = event
        if self.missing:
            return False
        return self._form()

    def left(self, event: Left) -> bool:
        """Note that a stage is gone; return whether it was one of the chain's."""
        member = self._members.get(event.stage)
        if member is None or member.connection is not event.connection:
            return False
        self.break_up()
        return True

    def is_current(self, event: Returned) -> bool:
        """Whether an outcome is of this chain, not of one that was left."""
        last = self._members.get(self._num_later)
        return self._first is not None and last is not None and last.connection is event.connection

    def send(self, given: Pass, hidden: torch.Tensor) -> None:
        """Send a pass to the second stage. Raises PeerLostError where it is gone."""
        assert self._first is not None, "a whole chain"
        send(self._first, Frame(Kind.PASS, given, hidden))

    def break_up(self) -> None:
        """Let all stages go; they dial again."""
        for each in (*(member.connection for member in self._members.values()), self._first):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        self._members.clear()
        self._first = None

    def close(self) -> None:
        """Let all go for good."""
        self._closed = True
        self.break_up()
        if self._listener is not None:
            self._listener.close()

    def _form(self) -> bool:
        self._number += 1
        try:
            for stage, member in self._members.items():
                following = self._members.get(stage + 1)
                told = {"chain": self._number, "next": None if following is None else following.address}
                send(member.connection, Frame(Kind.HELLO, told))
            self._first = socket.create_connection(self._members[1].address, timeout=SILENCE_S)
            self._first.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            send(self._first, Frame(Kind.HELLO, {"chain": self._number}))
        except (OSError, PeerLostError):
            self.break_up()
            return False
        return True

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed:
            try:
                connection, (host, *_) = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self._silence_s)
            threading.Thread(target=self._listen, args=(connection, host), name="member", daemon=True).start()

    def _listen(self, connection: socket.socket, host: str) -> None:
        """Turn what a stage says into events."""
        try:
            hello = receive(connection).header
            if "asks" in hello or hello.get("weights", "") != self._weights:
                self._tell_weights(connection, hello)
                return
            stage, port = int(hello["stage"]), int(hello["port"])
            cost = PassCost.model_validate(hello["cost"])
            longest_s = float(hello.get("longest_s", LONGEST_PASS_S))
        except (PeerLostError, AttributeError, KeyError, TypeError, ValueError):
            connection.close()
            return
        if not 1 <= stage <= self._num_later:
            connection.close()
            return
        self._events.put(Joined(stage, connection, (host, port), cost))
        try:
            while True:
                frame = receive(connection)
                if frame.kind is Kind.OUTCOME:
                    self._events.put(Returned(connection, outcome_of(frame.header)))
                elif frame.kind is Kind.BEAT:
                    self._readings[stage] = reading = Reading(**frame.header)
                    check_moves(reading, longest_s)
        except StuckError as error:
            self._events.put(Left(stage, connection, f"it {error}"))
        except PeerLostError as error:
            silent = isinstance(error.__cause__, TimeoutError)
            reason = f"it said nothing for {self._silence_s:g} s" if silent else str(error)
            self._events.put(Left(stage, connection, reason))

    def _tell_weights(self, connection: socket.socket, hello: Mapping[str, Any]) -> None:
        """Say which weights are served, to one who asks, or has others."""
        if hello.get("gone") == self._weights:
            self._events.put(Gone(self._weights))
        with contextlib.suppress(PeerLostError):
            send(connection, Frame(Kind.HELLO, {"weights": self._weights}))
        connection.close()
